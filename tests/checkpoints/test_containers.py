"""Every container that weights come in: the same numbers as the library that wrote them reads."""

import datetime
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import safetensors.torch
import torch

from app.checkpoints.reader import read_checkpoint
from app.errors import CheckpointError, UnsafeCheckpoint

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


def assert_holds(path: Path, container: str, state: dict[str, torch.Tensor]) -> None:
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == container
    assert set(checkpoint.arrays) == set(state)
    for name, tensor in state.items():
        expected = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(checkpoint.arrays[name], expected, strict=True)


def test_safetensors_are_read_as_their_library_reads_them(tmp_path: Path) -> None:
    numbers = torch.arange(24.0).reshape(4, 6)
    state = {str(kind): numbers.to(kind) for kind in TYPES} | {
        "none": torch.empty(0, 3),
        "one": numbers[2, 3].clone(),
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    assert_holds(path, "safetensors", safetensors.torch.load_file(path))


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_safetensors_that_are_cut_short_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(dict(network().state_dict()), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


WRITERS: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
    "torch.save": ("zip", torch.save),
    "torch.save, legacy": ("legacy", lambda o, f: torch.save(o, f, _use_new_zipfile_serialization=False)),
    "pickle": ("pickle", pickle.dump),
    "pickle, protocol 2": ("pickle", lambda o, f: pickle.dump(o, f, protocol=2)),
    "dill": ("pickle", dill.dump),
    "torch.save with dill": ("zip", lambda o, f: torch.save(o, f, pickle_module=dill)),
}


@pytest.mark.parametrize("whole", [False, True], ids=["state dict", "whole model"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_state_dict_and_a_whole_model_are_read_from_every_writer(
    tmp_path: Path, writer: str, whole: bool
) -> None:
    container, write = WRITERS[writer]
    model, path = network(), tmp_path / "stage-2.pth"
    with path.open("wb") as file:
        write(model if whole else model.state_dict(), file)
    assert_holds(path, container, model.state_dict())


@pytest.mark.fault("M20")
def test_storages_of_a_gpu_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    state = network().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in path.read_bytes()
    assert_holds(path, "legacy", dict(state))


@pytest.mark.fault("M20")
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state_dict"])
def test_the_wrappers_of_training_scripts_are_taken_off(tmp_path: Path, wrapper: str, entry: str) -> None:
    state = network().state_dict()
    tree = {
        "epoch": 3,
        entry: {wrapper + name: tensor for name, tensor in state.items()},
        "optimizer": {"lr": 0.1},
        "best_acc1": torch.tensor(87.5),  # as PyTorch's own ImageNet example does
    }
    torch.save(tree, tmp_path / "stage-2.pth")
    assert_holds(tmp_path / "stage-2.pth", "zip", dict(state))


class Dropper:
    """Makes a file when it is unpickled, by way of a name that the class is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "torch.hub": lambda: Dropper(torch.hub.load, "nobody/nothing", "x"),
    "torch.load": lambda: Dropper(torch.load, "other.pth"),
    "numpy.f2py": lambda: Dropper(__import__("numpy.f2py.crackfortran", fromlist=["x"]).myeval, "1+1"),
    "code": lambda: Dropper(__import__("code").interact),
    "requests": lambda: Dropper(__import__("requests").get, "http://127.0.0.1/"),
    "timeit": lambda: Dropper(__import__("timeit").timeit, "1"),
}


@pytest.mark.fault("M16")
@pytest.mark.parametrize("place", ["in the state dict", "in a whole model"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_gadget_is_refused_by_name_in_every_hiding_place(tmp_path: Path, attack: str, place: str) -> None:
    model = network()
    tree = {**model.state_dict(), "x": ATTACKS[attack]()}
    if place == "in a whole model":
        model.note, tree = ATTACKS[attack](), model  # type: ignore[assignment]
    torch.save(tree, tmp_path / "stage-2.pth")
    with pytest.raises(UnsafeCheckpoint, match="nothing of it was run"):
        read_checkpoint(tmp_path / "stage-2.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\x1f\x8b\x08\x00 and so on", "a gzip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"Rar!\x1a\x07", "a RAR archive"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "stage-2.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=found):
        read_checkpoint(tmp_path / "stage-2.pth")


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


TEXT, ENTRIES = b"X\x40\x42\x0f\0" + b"a" * 1_000_000, b"".join(b"X\5\0\0\0%05dK\1" % n for n in range(5000))


@pytest.mark.parametrize(
    "pickled",
    [
        name_of("_codecs", "encode") + b"q\0" + TEXT + b"X\6\0\0\0latin1\x86q\1" + b"h\0h\1R" * 10_000,
        name_of("collections", "OrderedDict") + b"q\0](X\1\0\0\0aK\1\x86q\2" + b"h\2" * 5000 + b"e\x85q\1"
        + b"h\0h\1R" * 10_000,
        name_of("__main__", "A") + b")\x81q\0N}(" + ENTRIES + b"u\x86q\1" + b"0h\0" + b"h\1b" * 10_000,
    ],
    ids=["texts", "dicts", "attributes"],
)  # fmt: skip
def test_a_pickle_that_asks_for_copy_after_copy_is_refused(pickled: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"\x80\2" + pickled + b".")
    with pytest.raises(CheckpointError, match="far more memory or work than its size explains"):
        read_checkpoint(tmp_path / "x.pth")


def test_wrappers_are_taken_off_in_any_order(tmp_path: Path) -> None:
    state = {f"model.module._orig_mod.{name}": value for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    assert_holds(
        tmp_path / "x.pth",
        "zip",
        {name.removeprefix("model.module._orig_mod."): value for name, value in state.items()},
    )


def test_more_tensors_than_any_network_has_are_refused(tmp_path: Path) -> None:
    one = torch.zeros(1)
    torch.save({str(number): one for number in range(10_001)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="10,001 tensors, more than any network"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_safetensors_shape_without_end_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[' + b"2," * 100_000 + b"2]}}"
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="100001 dimensions"):
        read_checkpoint(tmp_path / "x")


def test_complex_weights_are_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, dtype=torch.complex64)}, tmp_path / "stage-2.pth")
    with pytest.raises(CheckpointError, match="ComplexFloatStorage"):
        read_checkpoint(tmp_path / "stage-2.pth")


def test_what_is_harmless_beside_the_weights_is_left(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(
        {"state_dict": state, "at": datetime.datetime(2026, 1, 1), "path": tmp_path}, tmp_path / "x.pth"
    )
    assert_holds(tmp_path / "x.pth", "zip", dict(state))
