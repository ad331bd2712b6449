"""A trial of an ONNX file in a process of its own, with limits.

A file of a kilobyte can ask for any memory and any time: tiled and folded constants, loops, functions in
functions. So it is opened, and run on two pictures, where that ends nothing else.
"""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

from app.engines.onnx_file import WholeNetwork
from app.errors import CheckpointError

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


def open_network(path: Path, limits: Limits = Limits()) -> WholeNetwork:  # noqa: B008  # frozen
    """Open an ONNX file that has passed a trial. Raises CheckpointError."""
    memory = limits.memory(path.stat().st_size)
    command = [sys.executable, "-m", __name__, str(path.absolute()), str(limits.seconds), str(memory)]
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
            return WholeNetwork(path)
    raise CheckpointError(
        f"The ONNX file does not answer two pictures within {limits.seconds} s and {memory / 1e9:.1f} GB of "
        "memory. No image classifier of its size needs more: export the network again."
    )


def main(path: str, seconds: int, memory: int) -> int:
    """Open and probe a file within the limits; print the reason why it is refused. Return an exit code."""
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        WholeNetwork(Path(path))
    except CheckpointError as error:
        if "alloc" in str(error.__cause__).lower() or isinstance(error.__cause__, MemoryError):
            return TOO_MUCH
        sys.stdout.buffer.write(str(error).encode())
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
