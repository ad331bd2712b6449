"""The tables in docs/checkpoints.md; `python -m tests.generate` writes them."""

from pathlib import Path

from app.checkpoints.foreign import ARCHIVES, NON_CHECKPOINT_SIGNATURES
from app.checkpoints.task import TASKS
from app.graphs.graph import Graph, shipped_graphs

DOCUMENT = Path(__file__).parent.parent / "docs" / "checkpoints.md"
MARK = "<!-- from here on generated from the code -->\n"


def heads(graph: Graph) -> str:
    """Return the libraries whose heads the server knows behind a body."""
    library = "timm" if "" in graph.prefixes else "torchvision"
    return f"fastai, {library}" if graph.head else "fastai"


def table() -> str:
    """Return the generated part of the document."""
    rows = [
        "## Architectures\n",
        "| architecture | features | picture | heads | graph |",
        "|---|---|---|---|---|",
    ]
    graphs = shipped_graphs()
    for graph in graphs:
        size = f"{graph.size[0]} x {graph.size[1]}" if graph.size else "any size"
        kilobytes = f"{graph.path.stat().st_size / 1000:.0f} kB"
        rows.append(f"| `{graph.architecture}` | {graph.channels} | {size} | {heads(graph)} | {kilobytes} |")
    signatures: dict[object, list[str]] = {}
    for graph in graphs:
        signatures.setdefault(tuple(graph.weights.items()), []).append(graph.architecture)
    alike = [" and ".join(f"`{name}`" for name in names) for names in signatures.values() if len(names) > 1]
    rows += ["", "These have the same names and shapes; the setting `architecture` chooses one:", ""]
    rows += [f"- {names}" for names in alike]
    rows += ["", "## Other files\n\nThe reader refuses these by name:\n", "| begins with | is |", "|---|---|"]
    rows += [
        f"| `{signature!r}` | {found} |".replace("b'", "").replace("'`", "`")
        for signature, found, _ in NON_CHECKPOINT_SIGNATURES
    ]
    rows += ["", "These are networks of other tasks:", "", "| the file is | because |", "|---|---|"]
    rows += [f"| {task.found} | {task.does} |" for task in TASKS]
    rows += ["", "These are archives of something else:", "", "| holds | is | remedy |", "|---|---|---|"]
    rows += [f"| `{name}` | {found} | {remedy} |" for name, found, remedy in ARCHIVES]
    return "\n".join(rows) + "\n"


def document() -> str:
    """Return the document with new tables."""
    return DOCUMENT.read_text().partition(MARK)[0] + MARK + "\n" + table()


if __name__ == "__main__":
    DOCUMENT.write_text(document())
