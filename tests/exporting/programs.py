"""The programs of an export: an exported folder, three ways to spoil it, and the answers of a program."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from tests.conftest import IMAGES, SECONDS, bears_environment, run_app

NODE_MODULES = Path(__file__).parent.parent / "node_modules"


def export(folder: Path, **environment: str) -> Path:
    """Export the v1 bears with all programs."""
    ended = run_app("export", str(folder), **bears_environment(**environment))
    assert ended.returncode == 0, ended.stderr
    return folder


def with_a_wrong_mean(folder: Path) -> None:
    other = export(folder.with_name("wrong mean"), APP_MEAN="0.1,0.1,0.1")
    shutil.copy(other / "model.onnx", folder / "model.onnx")


def with_swapped_classes(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    (names,) = (each for each in model.graph.initializer if each.data_type == onnx.TensorProto.STRING)
    names.string_data[0], names.string_data[1] = names.string_data[1], names.string_data[0]
    onnx.save(model, folder / "model.onnx")


def with_a_changed_weight(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    numbers = np.frombuffer(largest.raw_data, np.float32).copy()
    numbers[: len(numbers) // 4] *= -1
    largest.raw_data = numbers.tobytes()
    onnx.save(model, folder / "model.onnx")


SABOTAGES: list[Callable[[Path], None]] = [with_a_wrong_mean, with_swapped_classes, with_a_changed_weight]


def replay(command: Sequence[str | Path], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program without further arguments: it replays the proof."""
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )


def assert_holds(command: Sequence[str | Path], folder: Path) -> None:
    ended = replay(command, folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "The proof holds: 8 photos, 0 of another class, largest difference 0.0000" in ended.stdout


def assert_fails(command: Sequence[str | Path], folder: Path) -> None:
    ended = replay(command, folder)
    assert ended.returncode == 1
    assert "THE PROOF FAILS" in ended.stdout


def predicted() -> dict[str, dict[str, float]]:
    """The probability of each class by `predict`, by picture."""
    ended = run_app("predict", "--json", *map(str, IMAGES), **bears_environment())
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    return {
        Path(row["file"]).name: {each["label"]: each["score"] for each in row["predictions"]} for row in rows
    }
