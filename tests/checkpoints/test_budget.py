"""The budget of the reader: memory and work within a multiple of the file's size, whatever the file says."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.checkpoints.budget import FIXED, MOST, MULTIPLE, STEPS, Budget
from app.checkpoints.reader import read_checkpoint
from app.checkpoints.unpickler import Unpickler
from app.errors import CheckpointError

MEASURED = 2  # Python's own lists and dicts may be twice as large as what they hold


def read_within_budget(path: Path) -> None:
    """Read a file, which may be refused; its memory at the peak stays within the stated multiple."""
    size = path.stat().st_size
    tracemalloc.start()
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert len(str(error)) < 1000
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEASURED * (size + min(FIXED + MULTIPLE * size, MOST)), f"{peak:,} bytes for {size:,}"


def module(name: str) -> bytes:
    return f"c__main__\n{name}\n)\x81".encode()


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def copies_by_newobj_ex(size: int) -> bytes:
    pairs = b"](" + (text(b"a") + b"K\1\x86q\1") + b"h\1" * size + b"e\x85q\2"
    return b"ccollections\nOrderedDict\nq\0" + pairs + b"0" + b"h\0h\2}\x92" * size


def copies_of_attributes(size: int) -> bytes:
    entries = b"".join(text(b"%06d" % number) + b"K\1" for number in range(size))
    return module("A") + b"q\0N}(" + entries + b"u\x86q\1" + b"0h\0" + b"h\1b" * size


def colliding_memo_keys(size: int) -> bytes:
    return b"}" + b"".join(b"p%d\n" % (number * ((1 << 61) - 1)) for number in range(size))


def colliding_dict_keys(size: int) -> bytes:
    keys = ((number * ((1 << 61) - 1)).to_bytes(10, "little") for number in range(size))
    return b"}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u"


def many_objects(size: int) -> bytes:
    return b"](" + b"c__main__\nA\nq\0" + b"h\0)\x81" * size + b"e"


def empty_dicts(size: int) -> bytes:
    return b"}" * 30 * size


def a_long_name_at_many_places(size: int) -> bytes:
    """A tree of modules: a tensor with one long name, at many places."""
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\1tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0))tR"

    def tree(parameters: bytes, modules: bytes) -> bytes:
        return module("M") + b"}(" + text(b"_parameters") + parameters + text(b"_modules") + modules + b"ub"

    leaf = tree(b"}" + text(b"n" * 50 * size) + tensor + b"s", b"}")
    places = b"".join(text(b"%d" % number) + b"h\0" for number in range(size))
    return tree(b"}", b"}(" + text(b"x") + leaf + b"q\0" + places + b"u")


PICKLES = (
    copies_by_newobj_ex,
    copies_of_attributes,
    colliding_memo_keys,
    colliding_dict_keys,
    many_objects,
    empty_dicts,
    a_long_name_at_many_places,
)


@pytest.mark.fault("M17", "M30")
@pytest.mark.parametrize("attack", PICKLES)
@pytest.mark.parametrize("container", ["plain", "zip"])
def test_a_pickle_is_read_or_refused_within_the_budget(
    attack: Callable[[int], bytes], container: str, tmp_path: Path
) -> None:
    path = tmp_path / "stage-2.pth"
    for size in (1_000, 17_000):
        pickled = b"\x80\2" + attack(size) + b"."
        if container == "plain":
            path.write_bytes(pickled)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a/data.pkl", pickled)
        read_within_budget(path)


@pytest.mark.fault("M17", "M30")
def test_a_pickle_of_more_steps_than_the_bound_is_refused(tmp_path: Path) -> None:
    """Each pair of opcodes leaves nothing behind, so that only the number of steps can stop it."""
    path = tmp_path / "stage-2.pth"
    path.write_bytes(b"\x80\2" + b"N0" * (STEPS // 2 + 1) + b"N.")
    with pytest.raises(CheckpointError, match="far more memory or work than its size explains"):
        read_checkpoint(path)


@pytest.mark.fault("M17", "M30")
@pytest.mark.parametrize("count", [60_000, 90_000])
def test_a_zip_of_very_many_entries_is_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"a/data/{number}", b"")
    with pytest.raises(CheckpointError, match=r"lists its entries in .* bytes, more than any checkpoint"):
        read_checkpoint(path)
    read_within_budget(path)


def test_a_zip_with_two_entries_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage-2.pth"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2}.")
        archive.writestr("a/data.pkl", b"\x80\2].")
    with pytest.raises(CheckpointError, match="two entries of one name"):
        read_checkpoint(path)


@pytest.mark.fault("M17", "M30")
@pytest.mark.parametrize("content", ['{"a":' + "[" * 500_000, "{" + '"a":{},' * 200_000 + '"b":{}}'])
def test_a_header_of_safetensors_is_bounded(content: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(len(content).to_bytes(8, "little") + content.encode())
    read_within_budget(tmp_path / "x")


OPCODES = [bytes([code]) for code in b"(.0NRbda}]ljetus)\x81\x85\x86\x87\x88\x92\x93\x94Q\x91\x90\x8f"] + [
    b"q\0", b"h\0", b"K\1", text(b"a"), b"ccollections\nOrderedDict\n", b"c__main__\nA\n", b"X\0\0\0\0",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"\x8a\1\5", text(b"storage"),
]  # fmt: skip


@pytest.mark.fault("M17", "M30")
@given(st.lists(st.sampled_from(OPCODES), max_size=60).map(b"".join), st.integers(1, 50))
@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_opcodes_are_walked_within_the_budget(opcodes: bytes, times: int) -> None:
    budget = Budget.of(len(opcodes) * times)
    try:
        Unpickler(io.BytesIO(b"\x80\2" + opcodes * times + b"."), budget).load()
    except (CheckpointError, ValueError, KeyError, IndexError, TypeError, EOFError, AttributeError):
        pass
    assert budget.steps > STEPS - 100 - 60 * 50


def test_a_file_with_its_optimizer_uses_a_small_part_of_the_budget() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(400)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 4)).sum().backward()
    optimizer.step()
    content = pickle.dumps({"model": model.state_dict(), "opt": optimizer.state_dict()})
    budget = Budget.of(len(content))
    whole = budget.bytes
    Unpickler(io.BytesIO(content), budget).load()
    assert budget.bytes > whole * 0.8 and budget.steps > STEPS * 0.8
