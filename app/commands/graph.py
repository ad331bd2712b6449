"""`python -m app graph`: export the graph of an architecture."""

import argparse

from app.graphs.export import export_graph
from app.graphs.graph import FOLDER
from app.graphs.quantize import quantize_graph


def run(options: argparse.Namespace) -> int:
    """Write the files of `options.architecture` beside the shipped ones."""
    path = export_graph(options.architecture, FOLDER)
    ends = [".json", *([".int8.onnx", ".ranges.onnx"] if quantize_graph(path) else [])]
    print(
        f"{path}, {', '.join(path.with_suffix(end).name for end in ends)}: deploy them with the application"
    )
    return 0
