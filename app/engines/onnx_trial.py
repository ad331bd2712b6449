"""Opening ONNX files of strangers.

A file of a kilobyte can ask for any memory and any time: tiled and folded constants, loops, functions in
functions. So it is first opened, and run on two pictures, in a process of its own, with limits.
"""

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from app.engines.onnx_file import WholeNetwork
from app.engines.photo_file import PhotoNetwork, takes_photos
from app.engines.sessions import file_session
from app.errors import CheckpointError, plain

OnnxNetwork = WholeNetwork | PhotoNetwork

ROOT: Final = Path(__file__).parent.parent.parent
REFUSED, TOO_MUCH = 3, 4  # exit codes
STARTED: Final = 5  # times the CPU time: a busy machine


class Limits(Struct, frozen=True):
    """The limits of a trial: seconds of CPU time, and bytes of memory for a file of `size` bytes."""

    seconds: int = 60
    base: int = 1_000_000_000  # a large network on two pictures of 1024 px
    multiple: int = 8  # of the size: the file, the session's copies, and those that it folds

    def memory(self, size: int) -> int:
        """Return the most bytes that a trial may take."""
        return self.base + self.multiple * size


def load_network(path: Path, data_files: Mapping[str, Path] | None = None) -> OnnxNetwork:
    """Load an ONNX file and those of its weights. Raises CheckpointError unless it is an image classifier."""
    try:
        session = file_session(path, data_files)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise CheckpointError(
            f"ONNX Runtime cannot load the file: {plain(error)}. Export it again, "
            "in one file, for ONNX Runtime on a CPU."
        ) from error
    return PhotoNetwork(session) if takes_photos(session) else WholeNetwork(session)


def open_network(
    path: Path,
    data_files: Mapping[str, Path] | None = None,
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> OnnxNetwork:
    """Open an ONNX file that has passed a trial, with the files of its weights, by the names that it has.

    Raises CheckpointError.
    """
    files = {name: each.absolute() for name, each in (data_files or {}).items()}
    memory = limits.memory(sum(each.stat().st_size for each in (path, *files.values())))
    command = [sys.executable, "-m", __name__, str(path.absolute()), str(limits.seconds), str(memory)]
    command += [str(each) for pair in files.items() for each in pair]
    with contextlib.suppress(subprocess.TimeoutExpired):
        trial = subprocess.run(  # noqa: S603  # our own module
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=STARTED * limits.seconds,
        )
        if trial.returncode == REFUSED:
            raise CheckpointError(trial.stdout.decode("utf-8", "replace"))
        if trial.returncode == 0:
            return load_network(path, files)
    raise CheckpointError(
        f"The ONNX file does not answer two pictures within {limits.seconds} s and {memory / 1e9:.1f} GB of "
        "memory. No image classifier of its size needs more: export the network again."
    )


def main(path: str, seconds: int, memory: int, *data_files: str) -> int:
    """Open and probe a file within the limits; print the reason why it is refused. Return an exit code.

    `data_files` are the names and paths of the files of its weights, in turn.
    """
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        load_network(Path(path), dict(zip(data_files[::2], map(Path, data_files[1::2]), strict=True)))
    except CheckpointError as error:
        if "alloc" in str(error.__cause__).lower() or isinstance(error.__cause__, MemoryError):
            return TOO_MUCH
        sys.stdout.buffer.write(str(error).encode())
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
