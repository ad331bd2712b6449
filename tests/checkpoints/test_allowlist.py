"""The names in a pickle: those that act are refused, those of no use to a learner are listed."""

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.checkpoints.allowlist import is_trusted
from app.checkpoints.reader import read_checkpoint
from app.errors import UnsafeCheckpoint
from tests.conftest import DATA


class Named:
    """Pickled as the call of a function that is given by name."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Called:
    """Pickled as the call of what a call returns."""

    def __init__(self, made: Named) -> None:
        self.made = made


class Writer(pickle._Pickler):
    """Writes the calls of functions that are given by name."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Named):
            self.write(f"c{value.module}\n{value.name}\n".encode())
            super().save(value.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(value, Called):
            self.save(value.made)
            super().save(())
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(value)
    return file.getvalue()


def beside_weights(value: Any, folder: Path) -> Path:
    """A plain pickle of a state dict, with another entry."""
    state: dict[str, Any] = {"0.0.weight": torch.zeros(4, 3, 3, 3), "1.8.weight": torch.zeros(2, 4)}
    (folder / "stage-2.pkl").write_bytes(pickled({"model": state, "extra": value}))
    return folder / "stage-2.pkl"


# Ways to run code, or to fetch and write files, when a pickle is loaded: public knowledge on pickles.
ACTING = """
    posix.system nt.system subprocess.Popen builtins.exec builtins.eval __builtin__.__import__ runpy.run_path
    importlib.import_module pty.spawn code.interact webbrowser.open urllib.request.urlretrieve shutil.rmtree
    ctypes.CDLL pip.main torch.hub.load numpy.testing._private.utils.runstring timeit.timeit pickle.loads
    multiprocessing.util.spawnv_passfds os.execv logging.config.listen logging.FileHandler io.open _io.FileIO
""".split()
LISTED = """
    operator.attrgetter operator.methodcaller types.FunctionType types.CodeType builtins.map builtins.filter
    fastai.data.external.untar_data fastcore.xtras.run fastai.vision.utils.download_images torch.from_file
    timm.models.create_model fastcore.basics.exec_new torchvision.datasets.mnist.MNIST numpy.memmap
    dill._dill._import_module pandas.read_csv PIL.ImageShow.show nobody.knows.Thing
""".split()


@pytest.mark.parametrize("name", ACTING)
def test_a_name_that_acts_is_refused(name: str, tmp_path: Path) -> None:
    path = beside_weights(Named(*name.rsplit(".", 1), "x"), tmp_path)
    with pytest.raises(UnsafeCheckpoint, match=rf"names {re.escape(name)}, .* nothing of it was run"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", LISTED)
def test_a_name_that_a_learner_does_not_need_is_listed(name: str, tmp_path: Path) -> None:
    path = beside_weights(Named(*name.rsplit(".", 1), "x"), tmp_path)
    assert read_checkpoint(path).unexpected == (name,)


@pytest.mark.parametrize(
    "value",
    [
        Named("builtins", "getattr", "x", "__class__"),
        Named("functools", "reduce", len, ["x", "y"]),
        Named("cloudpickle.cloudpickle", "subimport", "os"),
    ],
    ids=["getattr of a dunder", "reduce", "import of os"],
)
def test_a_harmless_name_with_other_arguments_is_listed(value: Named, tmp_path: Path) -> None:
    found = read_checkpoint(beside_weights(value, tmp_path)).unexpected
    assert [name.replace("__builtin__", "builtins") for name in found] == [f"{value.module}.{value.name}"]


@pytest.mark.fault("M31")
def test_a_function_that_the_pickle_makes_and_calls_is_listed(tmp_path: Path) -> None:
    made = Named("cloudpickle.cloudpickle", "_make_function", "code")
    assert read_checkpoint(beside_weights(made, tmp_path)).unexpected == ()
    path = beside_weights(Called(made), tmp_path)
    assert read_checkpoint(path).unexpected == ("cloudpickle.cloudpickle._make_function",)


@pytest.mark.fault("M31")
def test_a_pickle_inside_a_pickle_is_walked_even_if_nothing_refers_to_it(tmp_path: Path) -> None:
    def legacy(value: Any) -> bytes:
        magic, protocol, system = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}
        return b"".join(pickled(part) for part in (magic, protocol, system, value, []))

    inner = legacy(Named("nobody.knows", "thing"))
    for depth in (1, 2):
        path = beside_weights(Named("torch.storage", "_load_from_bytes", inner), tmp_path)
        assert read_checkpoint(path).unexpected == ("nobody.knows.thing",), depth
        inner = legacy(Named("torch.storage", "_load_from_bytes", inner))


def test_an_export_of_fastai_2_holds_no_name_to_warn_of(
    make_learner: Callable[..., Any], vision: Any
) -> None:
    learn = make_learner("squeezenet1_1", vision.RandomResizedCrop(64), cbs=[vision.SaveModelCallback()])
    learn.export("export.pkl")
    assert read_checkpoint(learn.path / "export.pkl").unexpected == ()


@pytest.mark.parametrize("name", ["export.pkl", "stage-2.pth", "several-labels.pkl", "model.pth"])
def test_files_of_fastai_1_hold_no_name_to_warn_of(name: str) -> None:
    assert read_checkpoint(DATA / "v1" / name).unexpected == ()


@pytest.mark.fault("M16")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.hub", "HASH_REGEX"),  # the acting module itself
        ("torch.hub.helpers", "harmless"),  # and one below it
        ("a_students_package", "Trainer.eval"),  # the last part of a dotted name
        ("a_students_package", "__import__"),
        ("distutils.util", "strtobool"),  # in no standard library since 3.12
        ("httplib", "HTTPConnection"),
        ("subprocess", "Popen"),
    ],
)
def test_a_name_that_acts_is_refused_by_its_module_or_by_any_of_its_parts(module: str, name: str) -> None:
    assert not is_trusted(module, name)
    assert is_trusted("a_students_package", "Trainer.fit")
