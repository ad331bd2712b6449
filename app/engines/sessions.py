"""ONNX Runtime's sessions: their options, and weights bound from memory."""

import os
from collections.abc import Mapping
from pathlib import Path

from app.cpus import usable_cores
from app.memory import return_free_pages
from app.types import Arrays

# From 1.29 on, ONNX Runtime's own builds for Linux report every opened model to Microsoft, unless this is set
# before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort


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


def bound_session(model: bytes, weights: Arrays, *, small: bool = False) -> ort.InferenceSession:
    """Return a session of a weightless graph that refers to `weights`, which must live as long as it does.

    ONNX Runtime copies most weights into the order that it computes in; `small` spares these copies, and is
    slower.
    """
    options = _options()
    if small:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return_free_pages()  # of the copies that were made on the way
    return session


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its exceptions say the same as its own lines
    # Waiting threads sleep: spinning burns a shared core for a gain that is only there on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
