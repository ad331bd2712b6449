"""Read a checkpoint safely: its named arrays, and the facts in an exported learner.

Nothing of torch is needed, and no pickle is run. Does not know architectures or settings.
"""

import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from app.checkpoints.archives import EXPECTED, listed
from app.checkpoints.containers import open_container
from app.checkpoints.labels import Labels, find_labels
from app.checkpoints.learner_export import Export, read_export
from app.checkpoints.records import Call
from app.checkpoints.state_dict import read_array, read_state
from app.errors import CheckpointError, plain
from app.types import Array

# Errors of pickletools and struct where the bytes end too early.
ENDED: Final = re.compile(r"but only \d+ remain|exhausted|not enough data|requires a buffer|no newline found")
SAMPLE: Final = 4_000_000  # bytes
MANY: Final = 30


class Checkpoint(Struct, frozen=True):
    """The content of a file of weights.

    `container` is "zip", "legacy", "pickle", "safetensors" or "onnx"; the arrays of an ONNX file stay in it,
    and `arrays` is empty. Else `arrays` maps state-dict names to read-only arrays, in the file's order. They
    are views of the mapped file, of its own dtypes, except bfloat16, which is widened to float32; in a legacy
    file they may be unaligned. `export` has the other facts of a learner or model that was saved whole,
    `labels` the class names beside a state dict. `names` maps the names of the arrays to those in the file,
    which may have the prefixes of wrappers. `library` is one whose names were translated, `family` the start
    of the names of architectures that it leaves. `unexpected` are the names in the pickle that loading it
    would look up, and that no network, transform or data block needs. `beside` are the settings that the
    files beside it decide; `data_files` the files of weights of an ONNX file, by the names that it has.
    """

    path: Path
    container: str
    arrays: dict[str, Array]
    file: mmap.mmap
    export: Export | None = None
    names: Mapping[str, str] = {}
    labels: Labels = ()
    library: str = ""
    family: str = ""
    unexpected: tuple[str, ...] = ()
    beside: Mapping[str, Any] = {}
    data_files: Mapping[str, Path] = {}

    def __repr__(self) -> str:
        """Leave out the arrays: up to Python 3.11 `asyncio.run` formats its result, which took 0.6 s."""
        return f"Checkpoint({str(self.path)!r})"

    @property
    def known(self) -> Mapping[str, Any]:
        """Return the settings that the file itself decides, by name."""
        known = self.export.known if self.export else {}
        own = {"classes": self.labels} if self.labels else {}
        return {**self.beside, **own, **known}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings for the owner of the file about the code that it names."""
        if not self.unexpected:
            return ()
        return (
            f"the file names code ({listed(self.unexpected)}); nothing of it was run here, but do not load "
            "the file with torch.load or learn.load unless you trust its author",
        )

    @property
    def module(self) -> Call | None:
        """Return the module tree, where the file has it."""
        return self.export.module if self.export else None

    def release(self) -> None:
        """Give the memory of the file back to the system, after its last use.

        The arrays stay valid: a later access reads the file again.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.file.madvise(mmap.MADV_DONTNEED)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a state dict, of a file of `Learner.save`, or of a learner or model saved whole.

    Raises CheckpointError for any other file and UnsafeCheckpoint for one that names other code.
    Memory: the pickle, and nothing of the tensors (they are mapped).
    """
    try:
        container = open_container(path)
        if container.kind == "onnx":
            files = dict.fromkeys(container.tree, path)
            return Checkpoint(path, "onnx", {}, container.data, data_files=files)
        export = read_export(container.tree, lambda tensor: read_array("", tensor, container.fetch))
        state = read_state(container, export.tensors() if export else None)
        return Checkpoint(
            path,
            container.kind,
            state.arrays,
            container.data,
            export,
            state.names,
            find_labels(container.tree, container.budget),
            state.library,
            state.family,
            tuple(sorted(map(str, container.unexpected))),
        )
    except CheckpointError:
        raise
    # The errors of pickletools, zipfile, json, struct and numpy on a damaged file; each is a fact about it.
    except (
        ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError, MemoryError,
        NotImplementedError, OSError, RecursionError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise _damaged(error, path) from error


def _damaged(error: Exception, path: Path) -> CheckpointError:
    """Make the error for a file of which nothing else is known: what happened to it on its way."""
    with path.open("rb") as file:
        start = file.read(SAMPLE)
    if isinstance(error, EOFError) or ENDED.search(str(error)):
        return CheckpointError(
            "The file is cut short or damaged: it ends in the middle of its list of objects, after "
            f"{path.stat().st_size:,} bytes. Download or upload it again."
        )
    if start.count(b"\r\n") == start.count(b"\n") > MANY or start.count(b"\xef\xbf\xbd") > MANY:
        return CheckpointError(
            "The file was changed on its way by a program that took it for text: its line ends or its bytes "
            "are replaced. Copy it again, in binary mode."
        )
    return CheckpointError(
        f"The file is damaged or not a checkpoint ({type(error).__name__}: {plain(error)}); "
        f"{EXPECTED}. Download it again, or save it again."
    )
