"""How fast each shipped graph is beside the plain ONNX file of the same network: `torch.onnx.export`'s own.

    python -m benchmarks.engines [NAME ...] [--turns 40] [--head library]

The plain file is exported here and now, optimized and for one photo of one size. Both are asked in turn in
one process with the same options. The ratios hold on a busy machine too.
"""

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from app.engines.contract import fitted
from app.engines.onnx_runtime import GraphEngine
from app.engines.sessions import bound_session
from app.graphs.bodies import TRANSFORMED, create_body, import_fastai
from app.graphs.graph import Graph, shipped_graphs

SIDE = 224
CLASSES = 10
BAR = 1.05  # how many times as long as the plain file a graph may take
TOLERANCE = 1e-3  # of the largest logit


class Times(NamedTuple):
    """Milliseconds of one run."""

    wall: float
    cpu: float


def fastai_model(graph: Graph) -> Any:
    """The body with the head that `vision_learner` puts behind it."""
    import torch

    body = create_body(graph.architecture)
    with torch.no_grad():
        pool = body(torch.zeros(1, 3, *(graph.size or (SIDE, SIDE)))).ndim == 4
    head = import_fastai().create_head(graph.channels, CLASSES, pool=pool)
    return torch.nn.Sequential(body, head).eval()


def library_model(graph: Graph) -> Any:
    """The network as torchvision or timm makes it, with a thousand classes."""
    vision = import_fastai()  # first: it makes torchvision importable
    import timm

    name = graph.architecture.removeprefix("timm.").removesuffix(TRANSFORMED)
    if "0.model." in graph.prefixes.values():
        return timm.create_model(name).eval()
    options = {"transform_input": True} if graph.architecture.endswith(TRANSFORMED) else {}
    return getattr(vision if name.startswith("xresnet") else vision.models, name)(**options).eval()


def plain_session(model: Any, pixels: np.ndarray) -> Callable[[], np.ndarray]:
    """The file that torch exports, ready to run."""
    import torch

    file = io.BytesIO()
    torch.onnx.export(model, (torch.from_numpy(pixels),), file, dynamo=True, verbose=False)
    session = bound_session(file.getvalue(), {})
    (name,) = (given.name for given in session.get_inputs())
    return lambda: session.run(None, {name: pixels})[0]  # type: ignore[no-any-return]


def timed(run: Callable[[], object]) -> Times:
    """One run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Times(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu))


def compare(graph: Graph, model: Any, turns: int) -> tuple[list[Times], list[Times]]:
    """The times of our graph and of the plain file, in turn. Ends the program if their logits differ."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, *(graph.size or (SIDE, SIDE))), np.float32)
    plain = plain_session(model, pixels)
    network = fitted(graph, {name: value.numpy() for name, value in model.state_dict().items()})
    engine = GraphEngine(network)
    expected, found = plain(), network.head.logits(engine.run(list(pixels))[0].features[np.newaxis])
    if not np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max():
        raise SystemExit(f"{graph.architecture} computes other logits than the plain file")
    rows = [(timed(lambda: engine.run(list(pixels))), timed(plain)) for _ in range(turns)]
    return [ours for ours, _ in rows], [plain for _, plain in rows]


def row(name: str, ours: list[Times], plain: list[Times]) -> str:
    """A row of the table; each ratio is the median of the turns' ratios."""
    cells, ratios = [], []
    for times in (ours, plain):
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        cells.append(f"{wall:.1f} / {cpu:.1f}")
    for kind in ("wall", "cpu"):
        pairs = zip(ours, plain, strict=True)
        ratios.append(statistics.median(getattr(mine, kind) / getattr(its, kind) for mine, its in pairs))
    kept = "" if max(ratios) <= BAR else "missed"
    return f"| {name} | {' | '.join(cells)} | {ratios[0]:.2f} | {ratios[1]:.2f} | {kept} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures; all that are shipped by default")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--head", choices=("fastai", "library"), default="fastai")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"| {options.head}'s head | ours, ms of wall / CPU | plain | wall | CPU | <= {BAR} |")
    print("|---|---|---|---|---|---|")
    for graph in shipped_graphs():
        if options.names and graph.architecture not in options.names:
            continue
        if options.head == "library" and not graph.head:
            continue
        model = fastai_model(graph) if options.head == "fastai" else library_model(graph)
        print(row(graph.architecture, *compare(graph, model, options.turns)), flush=True)


if __name__ == "__main__":
    main()
