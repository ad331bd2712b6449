"""The class names that training scripts keep beside the weights, in the order of the outputs."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from app.checkpoints.budget import Budget
from app.checkpoints.module_tree import values
from app.checkpoints.records import Call
from app.errors import ClassesMismatch, plain

NAMES: Final = (
    "class_to_idx", "idx_to_class", "label2id", "id2label", "classes", "class_names", "classnames", "CLASSES",
    "names", "labels", "label_names", "vocab", "categories", "index_to_class", "idx2class", "class2idx",
    "class_to_index",
)  # fmt: skip
MAX_DEPTH: Final = 2
Labels = tuple[str, ...]


def find_labels(tree: Any, budget: Budget) -> Labels:
    """Return the names of the classes in the object of a pickle, in the order of the outputs; else nothing.

    Raises ClassesMismatch where two entries contradict each other.
    """
    found = {
        name: labels for name, value in _entries(tree, MAX_DEPTH, budget) if (labels := read_labels(value))
    }
    if len(set(found.values())) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise ClassesMismatch(
            f"The file contradicts itself: its {first} lists {plain(', '.join(one))}, its {second} "
            f"{plain(', '.join(other))}. Take the wrong one out of the file, and save it again."
        )
    return next(iter(found.values()), ())


def _entries(tree: Any, depth: int, budget: Budget) -> Iterator[tuple[str, Any]]:
    """Find the entries of a dict, and of those in it, that have a name of class names."""
    entries = tree.state if isinstance(tree, Call) else tree
    if isinstance(entries, dict) and depth:
        budget.charge(0, len(entries))
        yield from ((name, value) for name, value in entries.items() if name in NAMES)
        for name, value in entries.items():
            if name not in NAMES and isinstance(value, dict | Call):
                yield from _entries(value, depth - 1, budget)


def read_labels(value: Any) -> Labels:
    """Return the names in a list, in a map from numbers, or in one to numbers; empty for anything else."""
    entries = value.state if isinstance(value, Call) and value.state else value
    if isinstance(entries, Mapping):
        return _in_order(entries)
    names = values(value)
    fits = len(names) > 1 and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return tuple(names) if fits else ()


def _in_order(entries: Mapping[Any, Any]) -> Labels:
    if all(isinstance(name, str) and isinstance(number, int) for name, number in entries.items()):
        entries = {number: name for name, number in entries.items()}
    numbered = {int(number): name for number, name in entries.items() if str(number).isdecimal()}
    fits = len(numbered) == len(entries) > 1 and sorted(numbered) == list(range(len(numbered)))
    if not fits or not all(isinstance(name, str) for name in numbered.values()):
        return ()
    return tuple(numbered[number] for number in range(len(numbered)))
