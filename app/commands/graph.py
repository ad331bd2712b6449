"""`python -m app graph`: export the graph of an architecture."""

import argparse

from app.graphs.bodies import canonical
from app.graphs.export import export_graph
from app.graphs.graph import FOLDER
from app.graphs.index import read_index
from app.graphs.quantize import quantize_graph


def run(options: argparse.Namespace) -> int:
    """Write the files of `options.architecture` beside the shipped ones."""
    name = canonical(options.architecture)
    if shipped := next((graph for graph, entry in read_index().items() if name in entry.aliases), ""):
        print(f"{name} is the same network as {shipped}, whose graph is shipped: nothing is to deploy.")
        return 0
    path = export_graph(name, FOLDER)
    ends = [".json", *([".int8.onnx", ".ranges.onnx"] if quantize_graph(path) else [])]
    print(
        f"{path}, {', '.join(path.with_suffix(end).name for end in ends)}: deploy them with the application"
    )
    return 0
