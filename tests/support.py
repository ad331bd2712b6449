"""The tables in docs/checkpoints.md; `python -m tests.generate` writes them."""

import json
from pathlib import Path

from app.checkpoints.foreign import ARCHIVES, NON_CHECKPOINT_SIGNATURES, OBJECTS
from app.checkpoints.task import TASKS
from app.graphs.graph import Graph, shipped_graphs
from tests.foreign import ARCHITECTURES, FOLDER, read

DOCUMENT = Path(__file__).parent.parent / "docs" / "checkpoints.md"
EVALUATIONS = json.loads((DOCUMENT.parent.parent / "app/graphs/evaluations.json").read_text())
MARK = "<!-- from here on generated from the code -->\n"


def heads(graph: Graph) -> str:
    """Return the libraries whose heads the server knows behind a body."""
    library = EVALUATIONS.get(graph.architecture, {}).get("library", "fastai")
    return "fastai" if library == "fastai" or not graph.head else f"fastai, {library}"


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
    rows += ["", "## What happens to a file\n", *_networks(), "", *_refused()]
    return "\n".join(rows) + "\n"


def _networks() -> list[str]:
    """Return a table of stored networks of other libraries: the graph that serves each."""
    rows = ["Networks of other libraries, compared with the library's own answers:\n"]
    rows += ["| the file is of | beside it | served as |", "|---|---|---|"]
    for path in sorted(FOLDER.glob("*.json")):
        foreign = read(path.stem)
        beside = ", ".join(f"`{name}`" for name in foreign.beside) or "nothing"
        rows.append(
            f"| {foreign.library}: {path.stem.replace('_', ' ')} | {beside} | {ARCHITECTURES[path.stem]} |"
        )
    return rows


def _refused() -> list[str]:
    """Return a table of files that are not served: the sentence about each names it, and says what to do."""
    rows = [
        "Files that are refused, each in one sentence:\n",
        "| the file is | told by | what to do |",
        "|---|---|---|",
    ]
    rows += [
        f"| {found} | it begins with `{signature!r}` | {remedy} |".replace("`b'", "`").replace("'`", "`")
        for signature, found, remedy in NON_CHECKPOINT_SIGNATURES
    ]
    rows += [f"| {found} | an archive with `{name}` | {remedy} |" for name, found, remedy in ARCHIVES]
    rows += [
        f"| objects of {found} | a pickle that names `{name}` | {remedy} |"
        for name, (found, remedy) in OBJECTS.items()
    ]
    rows += [
        f"| {task.found} | its tensors or modules: {task.does} | {task.advice[:1].lower()}{task.advice[1:]} |"
        for task in TASKS
    ]
    return rows


def document() -> str:
    """Return the document with new tables."""
    return DOCUMENT.read_text().partition(MARK)[0] + MARK + "\n" + table()


if __name__ == "__main__":
    DOCUMENT.write_text(document())
