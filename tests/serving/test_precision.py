"""The body in int8: its numbers are those of ONNX Runtime's own quantization; it is used where it agrees."""

import asyncio
import base64
import copy
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engines.contract import Output, fitted
from app.engines.int8 import quantize
from app.engines.onnx_runtime import GraphEngine
from app.errors import ProofError
from app.graphs.graph import FOLDER, Graph, find_graph, shipped_graphs
from app.graphs.quantize import quantize_graph
from app.serving.precision import Precision, compare, measure_gain
from app.serving.predictor import Predictor
from app.settings import Settings
from tests.conftest import bears_environment, named, open_predictor, run_app

pytestmark = pytest.mark.torch
SIDE = 64
STRIPES = ("across", "both", "down")
QUANTISED = [graph for graph in shipped_graphs() if graph.int8]
PREPROCESS = named(size=(SIDE, SIDE))


def striped(kind: int, random: np.random.Generator) -> Image.Image:
    """A picture of stripes of any width and color, in noise: across, both ways, or down."""
    period = random.uniform(6, 20)
    wave = np.sin(2 * np.pi * np.arange(SIDE) / period + random.uniform(0, 6))
    across, down = wave[:, None] + 0 * wave, 0 * wave[:, None] + wave
    shape = (across, (across + down) / 2, down)[kind][..., None] * random.uniform(20, 60, 3)
    pixels = 128 + shape + random.normal(0, 15, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def model(vision: Any) -> Any:
    """A ResNet18 of fastai that was taught the stripes."""
    import torch

    from app.graphs.bodies import create_body

    vision.set_seed(5)
    random = np.random.default_rng(5)
    network = torch.nn.Sequential(create_body("resnet18"), vision.create_head(512, 3)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(40):
        kinds = random.integers(0, 3, 24)
        pixels = np.stack([PREPROCESS(striped(kind, random)) for kind in kinds])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            network(torch.from_numpy(pixels)), torch.from_numpy(kinds)
        ).backward()
        optimizer.step()
    return network.eval()


def probabilities(model: Any, pictures: list[Image.Image]) -> np.ndarray:
    """The probabilities by torch, (N, 3)."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.stack([PREPROCESS(p) for p in pictures]))).softmax(1).numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Twelve that the network has not seen."""
    random = np.random.default_rng(6)
    return [striped(number % 3, random) for number in range(12)]


@pytest.fixture(scope="module")
def served(model: Any, pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint, and with the proof that a notebook would write."""
    import torch

    folder = tmp_path_factory.mktemp("stripes")
    torch.save(model.to(memory_format=torch.channels_last).state_dict(), folder / "stage-2.pth")
    photos = []
    for picture, row in zip(pictures, probabilities(model, pictures), strict=True):
        file = io.BytesIO()
        picture.save(file, "PNG")
        photo = base64.b64encode(file.getvalue()).decode()
        photos.append({"name": f"{len(photos)}.png", "photo": photo, "probabilities": row.tolist()})
    (folder / "proof.json").write_text(json.dumps({"classes": STRIPES, "photos": photos}))
    return folder


def opened(folder: Path, **changes: Any) -> Predictor:
    settings: dict[str, Any] = {
        "model_url": str(folder / "stage-2.pth"),
        "proof_url": str(folder / "proof.json"),
        "classes": STRIPES,
        "image_size": (SIDE, SIDE),
        **changes,
    }
    return asyncio.run(open_predictor(Settings(**settings)))


# --- the numbers -------------------------------------------------------------------------------------------


class Photos:
    """Pixels as ONNX Runtime's quantization reads them."""

    def __init__(self, pixels: list[np.ndarray]) -> None:
        self._photos: Iterator[dict[str, np.ndarray]] = iter([{"pixels": p[None]} for p in pixels])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._photos, None)


def test_the_numbers_are_those_of_onnx_runtimes_own_quantization(
    model: Any, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tool is given the network as torch takes BatchNorms into convolutions."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from app.graphs.quantize import _fold

    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0][4][0].conv1.weight[0] *= 1e-12  # in steps of so little its bias would not fit
    graph = next(graph for graph in QUANTISED if graph.architecture == "resnet18")
    body = onnx.load(graph.path, load_external_data=False)
    norms = _fold(body)
    numbers = {tensor.name: tensor for tensor in body.graph.initializer}
    for name, norm in norms.items():
        fused = torch.nn.utils.fuse_conv_bn_eval(model.get_submodule(name), model.get_submodule(norm))
        for part in ("weight", "bias"):
            array = getattr(fused, part).detach().contiguous().numpy()
            numbers[f"{name}.{part}"].CopyFrom(onnx.numpy_helper.from_array(array, f"{name}.{part}"))
    onnx.save(body, tmp_path / "body.onnx")
    pixels = [PREPROCESS(picture) for picture in pictures]
    quantize_static(
        tmp_path / "body.onnx",
        tmp_path / "int8.onnx",
        Photos(pixels),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert graph.int8
    monkeypatch.setattr("app.engines.int8.RANGE_MARGIN", 1.0)  # the tool has no such thing
    ours = quantize(graph, arrays, pixels)
    theirs = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer
    }
    assert ours.keys() <= theirs.keys()
    assert not any(
        theirs[name].any() for name in theirs.keys() - ours.keys()
    )  # zeros, which are in the graph
    for name, found in ours.items():
        expected = theirs[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        if found.dtype == np.float32:
            assert np.allclose(found, expected, rtol=1e-4), name
        else:  # where rounding decides, float32's own may be one step away
            steps = np.abs(found.astype(np.int64) - expected)
            large = np.maximum(np.abs(expected.astype(np.float64)), 1) if found.dtype == np.int32 else 1.0
            assert (steps / large).mean() < 0.05, name
            assert steps.max() <= (1 if found.dtype != np.int32 else 1e-4 * np.abs(expected).max() + 1), name


def test_int8_answers_as_torch_does_in_float32(model: Any, pictures: list[Image.Image]) -> None:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = find_graph(arrays)
    assert graph.int8
    pixels = [PREPROCESS(picture) for picture in pictures]
    numbers = quantize(graph, arrays, iter(pixels))
    engine = GraphEngine(fitted(graph, arrays), quantized_weights=numbers)
    random = np.random.default_rng(7)
    others = [striped(number % 3, random) for number in range(60)]
    expected = probabilities(model, others)
    found = np.stack([engine.run([PREPROCESS(p)])[0].probabilities for p in others])
    sure = expected.max(axis=1) > 0.6
    assert sure.sum() > 30
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[sure].all()
    assert 0 < np.abs(found - expected).mean() <= 0.01


@pytest.mark.parametrize("graph", QUANTISED, ids=lambda graph: graph.architecture)
def test_a_graph_in_int8_is_made_again_to_the_byte(graph: Graph, tmp_path: Path) -> None:
    path = Path(shutil.copy(graph.path, tmp_path))
    description = json.loads(graph.path.with_suffix(".json").read_text())
    del description["int8"]
    path.with_suffix(".json").write_text(json.dumps(description))
    assert quantize_graph(path)
    for end in (".json", ".int8.onnx", ".ranges.onnx"):
        assert path.with_suffix(end).read_bytes() == graph.path.with_suffix(end).read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "vgg16"])
def test_a_body_with_other_layers_has_no_graph_in_int8(architecture: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / f"{architecture}.onnx", tmp_path))
    assert not quantize_graph(path)
    assert list(tmp_path.iterdir()) == [path]


# --- whether it is used ------------------------------------------------------------------------------------


def test_where_int8_agrees_it_is_served_and_the_card_says_how_well(
    served: Path, model: Any, pictures: list[Image.Image]
) -> None:
    predictor = opened(served, precision="int8")
    precision = predictor.card.precision
    assert (precision.used, precision.photos, precision.flips) == ("int8", 12, 0)
    assert 0 < precision.mean_difference <= 0.01
    assert predictor.card.proof
    assert predictor.card.proof.worst_difference == pytest.approx(precision.worst_difference, abs=1e-4)
    assert precision.mean_difference <= precision.worst_difference < 0.1
    assert precision.gain > 0
    file = io.BytesIO()
    pictures[0].save(file, "PNG")
    answer = asyncio.run(predictor.predict(file.getvalue()))
    scores = {score.label: score.score for score in answer.predictions}
    expected = dict(zip(STRIPES, probabilities(model, pictures[:1])[0], strict=True))
    difference = max(abs(scores[name] - expected[name]) for name in STRIPES)
    assert 0 < difference < 0.1  # the answers are those of int8 too
    assert answer.familiarity == pytest.approx(1, abs=1e-5)


def test_a_heat_map_in_int8_uses_the_feature_map_of_int8(served: Path, pictures: list[Image.Image]) -> None:
    file = io.BytesIO()
    pictures[0].save(file, "PNG")
    maps = [
        np.array(asyncio.run(opened(served, precision=name).explain(file.getvalue())).heatmap)
        for name in ("float32", "int8")
    ]
    assert 0 < np.abs(maps[0] - maps[1]).mean() < 0.2


def test_int8_is_not_tried_unless_the_settings_ask_for_it(served: Path) -> None:
    assert opened(served).card.precision == Precision("float32", "the setting precision")


@pytest.fixture
def untaught(served: Path, pictures: list[Image.Image], vision: Any, tmp_path: Path) -> Path:
    """The same with a network that has learnt nothing, whose answers int8 changes."""
    import torch

    from app.graphs.bodies import create_body

    vision.set_seed(8)
    network = torch.nn.Sequential(create_body("resnet18"), vision.create_head(512, 3)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics of the pictures, so that its answers are spread
    with torch.no_grad():
        network(torch.from_numpy(np.stack([PREPROCESS(picture) for picture in pictures])))
        network[1][-1].weight *= 100  # tiny differences decide its sure answers
    network.eval()
    torch.save(network.state_dict(), tmp_path / "stage-2.pth")
    proof = json.loads((served / "proof.json").read_text())
    for photo, row in zip(proof["photos"], probabilities(network, pictures), strict=True):
        photo["probabilities"] = row.tolist()
    (tmp_path / "proof.json").write_text(json.dumps(proof))
    return tmp_path


def test_where_int8_does_not_agree_float32_is_served_and_the_log_says_why(
    untaught: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    precision = opened(untaught, precision="auto").card.precision
    assert precision.used == "float32"
    assert precision.why.startswith("int8 is too far from float32; ")
    assert f"computing in float32: {precision.why}" in caplog.text


def test_settings_that_insist_on_int8_get_it_or_an_error(untaught: Path) -> None:
    with pytest.raises(ProofError, match=r'precision is "int8", but int8 is too far from float32.*"auto"'):
        opened(untaught, precision="int8")


def test_without_a_proof_int8_cannot_be_judged(served: Path) -> None:
    assert "there is no proof_url" in opened(served, proof_url="", precision="auto").card.precision.why
    with pytest.raises(ProofError, match="there is no proof_url"):
        opened(served, proof_url="", precision="int8")


def test_a_network_without_a_graph_in_int8_is_named() -> None:
    ended = run_app("fetch", **bears_environment(APP_PRECISION="int8"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        'error: The setting precision is "int8", but squeezenet1_1 has no graph in int8: set precision to '
        '"float32" or "auto".'
    )


def answers(*rows: tuple[float, ...]) -> list[Output]:
    return [Output(np.array(row, np.float32), np.zeros(4, np.float32)) for row in rows]


def test_one_sure_answer_of_another_class_is_too_many_and_one_that_is_unsure_is_not() -> None:
    float32, int8 = answers((0.501, 0.499), (0.9, 0.1)), answers((0.499, 0.501), (0.9, 0.1))
    found = compare(float32, int8, gain=3.0)
    assert (found.used, found.flips, found.photos) == ("float32", 1, 2)
    assert "; 1 of 2 photos of the proof get another class, " in found.why
    found = compare(float32, int8, gain=3.0, unsure_below=0.6)
    assert found.used == "int8"
    assert "; 0 of the 1 photos of the proof that are not unsure get another class, " in found.why


def test_an_answer_that_only_int8_is_sure_of_is_counted() -> None:
    unsure, sure = answers((0.501, 0.499)), answers((0.499, 0.501))
    assert compare(unsure, sure, gain=3.0, unsure_below=0.5005).flips == 1
    assert compare(sure, unsure, gain=3.0, unsure_below=0.5005).flips == 1
    assert compare(unsure, sure, gain=3.0, unsure_below=0.6).flips == 0


def test_where_several_classes_may_be_right_each_is_an_answer_of_its_own() -> None:
    float32, int8 = answers((0.9, 0.501, 0.1)), answers((0.9, 0.499, 0.1))
    assert compare(float32, int8, gain=3.0).flips == 0
    assert compare(float32, int8, gain=3.0, threshold=0.5).flips == 1


def test_probabilities_that_differ_by_over_a_hundredth_on_average_are_too_far() -> None:
    float32 = answers((0.9, 0.1))
    assert compare(float32, answers((0.891, 0.109)), gain=3.0).used == "int8"
    found = compare(float32, answers((0.889, 0.111)), gain=3.0)
    assert (found.used, found.flips) == ("float32", 0)
    assert found.worst_difference == pytest.approx(0.011, abs=1e-6)


def test_many_classes_do_not_hide_how_much_the_answers_changed() -> None:
    float32 = answers((0.9, 0.1, *[0.0] * 98))
    assert compare(float32, answers((0.881, 0.119, *[0.0] * 98)), gain=3.0).used == "int8"
    found = compare(float32, answers((0.879, 0.121, *[0.0] * 98)), gain=3.0)
    assert (found.used, found.flips) == ("float32", 0)
    assert found.mean_difference < 0.001
    assert found.mean_largest_difference == pytest.approx(0.021, abs=1e-6)


def test_int8_that_is_hardly_faster_is_used_only_if_the_settings_insist() -> None:
    same = answers((0.9, 0.1))
    assert compare(same, same, gain=1.2).why.startswith("int8 is hardly faster; ")
    assert compare(same, same, gain=1.2, insist=True).used == "int8"
    assert compare(same, same, gain=1.3).used == "int8"


def test_the_gain_of_an_engine_over_itself_is_about_one(model: Any) -> None:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = find_graph(arrays)
    engine = GraphEngine(fitted(graph, arrays))
    assert 0.3 < measure_gain(engine, engine, PREPROCESS) < 3
