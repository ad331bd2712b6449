"""ONNX Runtime's sessions: their options, weights bound from memory, and the choice between two of them."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from app.cpus import usable_cores
from app.memory import return_free_pages, return_large_blocks
from app.types import Arrays

# From 1.29 on, ONNX Runtime's own builds for Linux report every opened model to Microsoft, unless this is set
# before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

# bytes. While it optimizes, ONNX Runtime holds the weights up to three times; twice if freed blocks are
# returned at once, which makes a session half as long again. Networks of this size need the memory more.
LARGE: Final = 100_000_000

# cores. ResNet34 on 16: 104 photos a second with a session of 16 threads, 300 with one of a single thread and
# 16 callers. On two cores a second session saves 4 % of the time at best.
MANY: Final = 4


class Sessions:
    """The sessions of one network: for a call alone one that uses all cores, for calls beside it another.

    The other has one thread for each call, and its own copy of the weights; it exists from MANY cores on. The
    calls under way make the choice, without a timer.
    """

    def __init__(self, make: Callable[[int], ort.InferenceSession], cores: int) -> None:
        """Make the sessions; `make` takes their number of threads."""
        self.wide = make(cores)
        self.narrow = make(1) if cores >= MANY else self.wide
        self._lock = threading.Lock()
        self._running = 0

    def run(self, names: Sequence[str], inputs: Arrays) -> list[Any]:
        """Compute the outputs of these names. Several threads may call at once."""
        with self._lock:
            session = self.narrow if self._running else self.wide
            self._running += 1
        try:
            return session.run(names, inputs)  # type: ignore[no-any-return]
        finally:
            with self._lock:
                self._running -= 1


def file_session(path: Path, data_files: Mapping[str, Path] | None = None) -> ort.InferenceSession:
    """Return a session of an ONNX file; `data_files` are those of its weights, by the names that it has.

    All are loaded from bytes: from a path ONNX Runtime would open other files that the model may name.
    """
    options = _options()
    if data_files:
        contents = [each.read_bytes() for each in data_files.values()]
        options.add_external_initializers_from_files_in_memory(
            list(data_files), contents, [len(each) for each in contents]
        )
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def bound_session(
    model: bytes, weights: Arrays, threads: int = 0, *, small: bool = False
) -> ort.InferenceSession:
    """Return a session of a weightless graph that refers to `weights`, which must live as long as it does.

    It computes with as many `threads`; 0 are those of all cores.

    ONNX Runtime copies most weights into the order that it computes in; `small` spares these copies, and is
    slower.
    """
    if sum(array.nbytes for array in weights.values()) > LARGE:
        return_large_blocks()
    options = _options(threads)
    if small:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return_free_pages()  # of the copies that were made on the way
    return session


def _options(threads: int = 0) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its exceptions say the same as its own lines
    # Waiting threads sleep: spinning burns a shared core for a gain that is only there on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
