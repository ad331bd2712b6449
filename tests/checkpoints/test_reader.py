"""Reading checkpoints: the same numbers as torch reads, and nothing is ever run."""

import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.checkpoints.reader import read_checkpoint
from app.errors import CheckpointError, UnsafeCheckpoint
from app.serving.recognize import recognize
from tests.conftest import V1_CHECKPOINT

CONTAINERS = {"zip": True, "legacy": False}


def save(tree: Any, path: Path, container: str) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=CONTAINERS[container])
    return path


def assert_same(state: dict[str, torch.Tensor], path: Path) -> None:
    arrays = read_checkpoint(path).arrays
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        expected = (
            tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        )
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected, strict=True)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small network that has been trained a step, so that its optimizer has something to remember."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_what_fastai_v1_wrote_is_read_as_torch_reads_it() -> None:
    assert read_checkpoint(V1_CHECKPOINT).container == "legacy"
    assert_same(torch.load(V1_CHECKPOINT, weights_only=True), V1_CHECKPOINT)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_state_dict_is_read_from_both_containers(trained: Any, tmp_path: Path, container: str) -> None:
    path = save(trained[0].state_dict(), tmp_path / "stage-2.pth", container)
    assert read_checkpoint(path).container == container
    assert_same(trained[0].state_dict(), path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_model_is_read_and_the_optimizer_is_left(trained: Any, tmp_path: Path, container: str) -> None:
    tree = {
        "model": trained[0].state_dict(),
        "opt": {"state": trained[1].state_dict(), "lr": np.float64(0.1)},
    }
    assert_same(trained[0].state_dict(), save(tree, tmp_path / "stage-2.pth", container))


def test_what_fastai_v2_saves_after_training_is_read(make_learner: Callable[..., Any], vision: Any) -> None:
    learn = make_learner("squeezenet1_1", vision.Resize(64))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
    path = learn.save("stage-2")
    with pytest.raises(pickle.UnpicklingError):  # the reason why torch's own safe loader is not enough
        torch.load(path, weights_only=True)
    assert_same(learn.model.state_dict(), path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_types_offsets_and_strides_are_honored(tmp_path: Path, container: str) -> None:
    numbers = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": numbers.T,
        "window": numbers[1:3, 2:5],
        "scalar": numbers[2, 3],
        "empty": torch.empty(0, 3),
        **{
            str(kind): numbers.to(kind)
            for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int64)
        },
        "bytes": numbers.to(torch.uint8),
        "booleans": numbers > 3,
        "parameter": torch.nn.Parameter(numbers),
    }
    assert_same(tensors, save(tensors, tmp_path / "tensors.pth", container))


def resident_file_pages() -> int:
    """kB of mapped files that this process has in memory (Linux only)."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("what of a mapped file is in memory cannot be measured here")
    return int(status.read_text().partition("RssFile:")[2].split()[0])


def test_the_text_of_a_checkpoint_has_no_numbers_which_take_long_to_write() -> None:
    checkpoint = read_checkpoint(V1_CHECKPOINT)
    assert repr(checkpoint) == f"Checkpoint({str(V1_CHECKPOINT)!r})"
    assert repr(recognize(checkpoint)).startswith("Network('")


def test_the_memory_of_the_file_can_be_given_back_and_the_arrays_stay_what_they_are(tmp_path: Path) -> None:
    numbers = torch.arange(5_000_000, dtype=torch.float32)  # 20 MB
    torch.save({"0.weight": numbers}, tmp_path / "large.pth")
    checkpoint = read_checkpoint(tmp_path / "large.pth")
    array = checkpoint.arrays["0.weight"]
    assert array.sum() > 0
    used = resident_file_pages()
    checkpoint.release()
    assert used - resident_file_pages() > 15_000
    assert np.array_equal(array, numbers.numpy())


def test_arrays_are_views_of_the_mapped_file(trained: Any, tmp_path: Path) -> None:
    path = save(trained[0].state_dict(), tmp_path / "stage-2.pth", "zip")
    assert all(
        not array.flags.owndata and not array.flags.writeable
        for array in read_checkpoint(path).arrays.values()
    )


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class MaliciousCode:
    """The same by way of a builtin."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.fault("M16")
@pytest.mark.parametrize("attack", [Malicious, MaliciousCode])
@pytest.mark.parametrize("place", ["alone", "beside the weights", "in the optimizer"])
@pytest.mark.parametrize("container", [*CONTAINERS, "plain"])
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, container: str, place: str, attack: Any
) -> None:
    written = tmp_path / "written"
    weights = {"0.weight": torch.zeros(3)}
    tree = {
        "alone": attack(written),
        "beside the weights": {**weights, "x": attack(written)},
        "in the optimizer": {"model": weights, "opt": attack(written)},
    }[place]
    path = tmp_path / "stage-2.pth"
    if container == "plain":
        path.write_bytes(pickle.dumps(attack(written), protocol=4))
    else:
        save(tree, path, container)
    with pytest.raises(
        UnsafeCheckpoint,
        match=r"names (posix\.system|builtins\.exec|__builtin__\.exec).*nothing of it was run",
    ):
        read_checkpoint(path)
    assert not written.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    pickle.loads(pickle.dumps(attack(written)))  # the attack is a real one
    assert written.exists()


@pytest.mark.fault("M02", "M03")
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\0" * 5000, "full of zeros"),
        (b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "a web page"),
        (b"\n  <html><body>Sign in</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a git-lfs pointer"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML answer"),
        (b'{"error": "not found"}', "a JSON text"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"Not found", "it begins with 'Not found'"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "stage-2.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=found):
        read_checkpoint(path)


def test_a_zip_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without the data\.pkl"):
        read_checkpoint(path)


def test_a_checkpoint_that_was_zipped_again_is_named(trained: Any, tmp_path: Path) -> None:
    whole = save(trained[0].state_dict(), tmp_path / "whole.pth", "zip")
    path = tmp_path / "stage-2.pth"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed by a zip program"):
        read_checkpoint(path)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_half_a_file_is_refused(trained: Any, tmp_path: Path, container: str, part: float) -> None:
    whole = save(trained[0].state_dict(), tmp_path / "whole.pth", container).read_bytes()
    path = tmp_path / "stage-2.pth"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("tree", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
def test_a_torch_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(CheckpointError, match="holds"):
        read_checkpoint(save(tree, tmp_path / "stage-2.pth", "zip"))


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = save({"weight": torch.zeros(100)}, tmp_path / "stage-2.pth", "legacy")
    damaged = path.read_bytes().replace(b"K\x00Kd\x85", b"K\x00K\xff\x85")  # size 100 -> 255
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_checkpoint(path)


NESTED = b")" + b"\x85" * 400_000  # a tuple so deep that hashing it would overflow the C stack


EXHAUSTING = {  # pickle -> what is said of it
    "deep module": (b"\x80\x04" + NESTED + b"\x8c\x01x\x93.", "a str was expected, found a tuple"),
    "deep key": (b"\x80\x02}" + NESTED + b"K\x01s.", "holds no tensors"),
    "deep storage key": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + NESTED + b"X\x03\x00\x00\x00cpuK\x01tQ.",
        "a str was expected, found a tuple",
    ),
    "huge integer": (
        b"\x80\x02\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b".",
        "an integer of 7999999 bits",
    ),
    "many opcodes": (b"\x80\x02" + b"}" * 2_000_000 + b".", "far more memory or work"),
    "ordered": (b"\x80\x02ccollections\nOrderedDict\n(]Q.", "a tuple was expected"),
    "marks": (b"\x80\x02(((((", "cut short or damaged"),
    "nothing": (b"\x80\x02.", "pop from empty list"),
}


@pytest.mark.parametrize(("pickled", "said"), EXHAUSTING.values(), ids=EXHAUSTING)
def test_a_pickle_made_to_exhaust_the_reader_is_refused_at_once(
    tmp_path: Path, pickled: bytes, said: str
) -> None:
    path = tmp_path / "stage-2.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(path)
    assert time.thread_time() - start < 5


def test_a_legacy_file_whose_storage_keys_are_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    magic, protocol, system = (
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    path.write_bytes(magic + protocol + system + pickle.dumps({}, 2) + b"\x80\x02]" + NESTED + b"a.")
    with pytest.raises(CheckpointError, match="a storage key is not a string"):
        read_checkpoint(path)


def test_tensors_that_share_a_storage_many_times_over_are_refused(tmp_path: Path) -> None:
    numbers = torch.zeros(100_000, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="overlap"):
        read_checkpoint(save({f"weight{i}": numbers for i in range(9)}, tmp_path / "stage-2.pth", "zip"))
    assert_same(
        {"one": numbers, "tied": numbers},
        save({"one": numbers, "tied": numbers}, tmp_path / "tied.pth", "zip"),
    )


def test_the_prefix_of_data_parallel_is_taken_off(trained: Any, tmp_path: Path) -> None:
    state = trained[0].state_dict()
    path = save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "stage-2.pth", "zip")
    assert_same(state, path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)


FUZZED = (*CONTAINERS, "safetensors", "model-plain.pkl", "squished.pkl", "data-export.pkl")


def checkpoint_bytes(container: str) -> bytes:
    if container.endswith(".pkl"):
        return (V1_CHECKPOINT.parent / container).read_bytes()
    if container == "safetensors":
        return safetensors.torch.save({"0.weight": torch.ones(2, 3), "n": torch.tensor(1)})
    path = Path(os.environ["PYTEST_TMP"]) / f"{container}.pth"
    if not path.exists():
        state = {"0.weight": torch.ones(2, 3), "1.8.bias": torch.ones(3), "n": torch.tensor(1)}
        save({"model": state, "opt": {"lr": np.float64(0.1)}}, path, container)
    return path.read_bytes()


@pytest.mark.fault("M17")
@pytest.mark.parametrize("container", FUZZED)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_give_arrays_or_a_checkpoint_error(
    container: str, edits: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))
    content = bytearray(checkpoint_bytes(container))
    for position, value in edits:
        content[position % len(content)] = value
    path = tmp_path / "stage-2.pth"
    path.write_bytes(content)
    start = time.thread_time()
    try:
        arrays = read_checkpoint(path).arrays
    except CheckpointError as error:
        assert len(str(error)) < 1000
    else:
        assert sum(array.nbytes for array in arrays.values()) <= 4 * len(content)
    assert time.thread_time() - start < 1
