"""The numpy head against the modules it is read from."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.head import read_head, softmax
from app.errors import CheckpointError
from tests.conftest import ROOT

CHANNELS = 48
VARIANTS: list[dict[str, Any]] = [
    {},
    {"concat_pool": False},
    {"lin_ftrs": []},
    {"lin_ftrs": [100, 20]},
    {"bn_final": True},
    {"first_bn": False},
    {"ps": 0.0},
    {"pool": False, "concat_pool": False},
]


def spread(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and statistic a value of its own, as training does."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0.1, 0.3)
    return module.eval()


def arrays_of(head: torch.nn.Module) -> dict[str, np.ndarray]:
    return {f"1.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}


def feature_map(pooled: bool = False) -> torch.Tensor:
    return torch.randn(3, CHANNELS, *(() if pooled else (5, 7)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_head_that_fastai_v2_makes_gives_the_same_logits(vision: Any, variant: dict[str, Any]) -> None:
    module = spread(vision.create_head(CHANNELS, 5, **variant))
    head = read_head(arrays_of(module), CHANNELS)
    features = feature_map(pooled=variant.get("pool") is False)
    with torch.no_grad():
        expected = module(features).numpy()
    np.testing.assert_allclose(head.logits(head.pooled(features.numpy())), expected, rtol=1e-4, atol=1e-4)
    assert (head.outputs, head.generation) == (5, 2)


def test_a_feature_that_hardly_varied_in_training_is_scaled_as_torch_scales_it(vision: Any) -> None:
    module = spread(vision.create_head(CHANNELS, 5))
    for name, tensor in module.state_dict().items():
        if "var" in name:
            tensor.fill_(1e-6)  # a tenth of the epsilon of BatchNorm
    features = feature_map()
    head = read_head(arrays_of(module), CHANNELS)
    with torch.no_grad():
        expected = module(features).numpy()
    np.testing.assert_allclose(head.logits(head.pooled(features.numpy())), expected, rtol=1e-3)


def test_a_biased_linear_layer_without_a_batchnorm_before_it_is_v2s(vision: Any) -> None:
    module = vision.create_head(CHANNELS, 5, first_bn=False, lin_ftrs=[])
    assert read_head(arrays_of(module), CHANNELS).generation == 2


def test_the_biased_head_of_fastai_v1_gives_the_same_logits(vision: Any) -> None:
    nn = torch.nn
    layers = [
        vision.AdaptiveConcatPool2d(1),
        vision.Flatten(),
        nn.BatchNorm1d(2 * CHANNELS),
        nn.Dropout(0.25),
    ]
    layers += [
        nn.Linear(2 * CHANNELS, 512),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, 4),
    ]
    module = spread(nn.Sequential(*layers))
    head = read_head(arrays_of(module), CHANNELS)
    with torch.no_grad():
        expected = module(feature_map()).numpy()
    np.testing.assert_allclose(
        head.logits(head.pooled(feature_map().numpy())), expected, rtol=1e-4, atol=1e-4
    )
    assert (head.outputs, head.generation, head.pool) == (4, 1, "concat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "1.9.running_mean": a["1.6.running_mean"]}, "holds running_mean alone"),
        (lambda a: {**a, "1.9.weight": np.ones((4, 5), np.float32)}, "set head_activation"),
        (lambda a: {**a, "1.4.0.weight": a["1.2.weight"]}, r"1\.4\.0\.weight, which is not understood"),
        (lambda a: {n.replace("1.4.", "1.5."): v for n, v in a.items()}, "set head_activation"),
        (lambda a: {n: v for n, v in a.items() if n == "0.weight"}, "no head"),
        (lambda a: {n: v for n, v in a.items() if not n.startswith(("1.4.", "1.8."))}, "no head"),
        (lambda a: {**a, "1.8.weight": np.ones((5, 511), np.float32)}, "follows one that gives 512"),
        (lambda a: {**a, "1.4.weight": np.ones((512, 5, 3, 3), np.float32)}, "4 dimensions"),
        (lambda a: {**a, "1.2.weight": np.float32(1)}, "damaged"),
        (lambda a: {**a, "1.6.bias": np.ones(7, np.float32)}, "damaged"),
    ],
)
def test_a_head_that_is_not_fastais_is_refused_by_name(vision: Any, change: Any, message: str) -> None:
    arrays = arrays_of(vision.create_head(CHANNELS, 5))
    with pytest.raises(CheckpointError, match=message):
        read_head(change(arrays), CHANNELS)


def test_a_head_for_another_body_is_refused(vision: Any) -> None:
    with pytest.raises(CheckpointError, match="takes 96 features, but the body gives 512"):
        read_head(arrays_of(vision.create_head(CHANNELS, 5)), 512)


def test_softmax_is_torchs_even_where_exponentials_overflow() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [0.1, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(softmax(logits), torch.tensor(logits).softmax(1).numpy(), rtol=1e-6)


def test_numpy_starts_no_threads_of_its_own() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("the threads of a process cannot be counted here")
    product = "import os, app.engines.head, numpy; a = numpy.ones((999, 999)); a @ a"
    code = f"{product}; print(len(os.listdir('/proc/self/task')))"
    limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in limits}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("1\n", "")


@pytest.mark.parametrize("shape", [(3, 2 * CHANNELS), (3, CHANNELS, 2, 2), (3,), ()])
def test_a_layer_of_the_library_for_other_features_than_the_body_gives_is_refused(
    shape: tuple[int, ...],
) -> None:
    arrays = {"fc.weight": np.zeros(shape), "fc.bias": np.zeros(3)}
    with pytest.raises(CheckpointError, match=f"the layers before give {CHANNELS} numbers"):
        read_head(arrays, CHANNELS, ["average 1", "linear fc"])


def test_a_batch_norm_of_two_dimensions_is_refused() -> None:
    arrays = {f"1.2.{name}": np.ones(8) for name in ("bias", "running_mean", "running_var")}
    with pytest.raises(CheckpointError, match="Layer 2 of the head has"):
        read_head({**arrays, "1.2.weight": np.ones((8, 8)), "1.4.weight": np.ones((3, 8))}, 8)
