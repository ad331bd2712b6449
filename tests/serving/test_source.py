"""Reading a model: the file, and the files of weights that an ONNX file keeps beside it."""

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.checkpoints.reader import read_checkpoint
from app.engines.onnx_file import WholeNetwork
from app.errors import CheckpointError, DownloadError
from app.serving import source
from app.serving.recognize import recognize
from app.serving.source import read_source
from tests.http_server import Handler, send, serving

PIXELS = np.random.default_rng(0).standard_normal((3, 8, 8), np.float32)
MATRIX = np.random.default_rng(1).standard_normal((3, 300), np.float32)
DATA_FILE = "model.onnx.data"


def write(folder: Path, location: str = DATA_FILE) -> Path:
    """A network of the mean of each channel, whose weights stand beside it, as torch.onnx.export writes."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 300])],
        [numpy_helper.from_array(MATRIX, "matrix"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location=DATA_FILE, size_threshold=100
    )
    if location != DATA_FILE:
        content = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(content.replace(DATA_FILE.encode(), location.encode()))
    return folder / "model.onnx"


def scores(location: str) -> np.ndarray:
    network = recognize(asyncio.run(read_source(location, lambda *_: None)).checkpoint)
    assert isinstance(network, WholeNetwork)
    return network.scores([PIXELS])[0]


def test_the_weights_beside_an_onnx_file_are_read(tmp_path: Path) -> None:
    np.testing.assert_allclose(scores(str(write(tmp_path))), PIXELS.mean((1, 2)) @ MATRIX, atol=1e-5)


def test_the_weights_beside_the_link_of_an_onnx_file_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(source, "MODELS", tmp_path / "models")

    def answer(handler: Handler) -> None:
        send(handler, path.with_name(handler.path.rpartition("/")[2]).read_bytes())

    with serving(answer) as (url, asked):
        for _ in range(2):
            found = scores(f"{url}/bears/model.onnx")
            np.testing.assert_allclose(found, PIXELS.mean((1, 2)) @ MATRIX, atol=1e-5)
    assert asked == ["/bears/model.onnx", "/bears/model.onnx.data"]


def test_weights_that_are_not_beside_an_onnx_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    (tmp_path / DATA_FILE).unlink()
    with pytest.raises(CheckpointError) as caught:
        scores(str(path))
    assert str(caught.value) == (
        "The ONNX file keeps its weights in model.onnx.data, which is not beside it: deploy both files in "
        "one folder, or export it in one file."
    )
    monkeypatch.setattr(source, "MODELS", tmp_path / "models")

    def answer(handler: Handler) -> None:
        found = handler.path.endswith(".onnx")
        send(handler, path.read_bytes() if found else b"", 200 if found else 404)

    with serving(answer) as (url, _), pytest.raises(DownloadError, match="answered 404"):
        scores(f"{url}/model.onnx")


@pytest.mark.parametrize(
    "location", ["../../etc/pass", "/etc/ssl/certs1", ".ssh/known_hos", ".bash_history_"]
)
def test_an_onnx_file_never_reaches_a_file_elsewhere(location: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{location:<{len(DATA_FILE)}}"[: len(DATA_FILE)])
    with pytest.raises(CheckpointError, match="which is not a file beside it"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_a_damaged_onnx_file_is_refused_or_read(place: int, tmp_path: Path) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0xFF
    path.write_bytes(content)
    try:
        recognize(asyncio.run(read_source(str(path), lambda *_: None)).checkpoint)
    except CheckpointError as error:
        assert len(str(error)) < 700
