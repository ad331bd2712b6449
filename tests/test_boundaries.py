"""The house: which module may import which, and how large one may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

APP = ROOT / "app"
FLOORS = (  # lowest first
    ("access", "colours", "cores", "errors", "layers", "logs", "metrics", "problem", "trust", "wire"),
    ("limits", "links", "unpickler"),
    ("container", "modules", "picture"),
    ("export",),
    ("checkpoint", "form", "preprocess", "remote", "transfer"),
    ("download",),
    ("graphs", "head"),
    ("engine", "exporter"),
    ("explain", "precision", "quantiser"),
    ("learner", "batcher", "admission", "proof"),
    ("settings", "decoder"),
    ("inspection",),
    ("predictor",),
    ("opening",),
    ("service", "edge", "evaluation", "now", "page"),
    ("protocol", "server"),
    ("process",),
    ("cli",),
    ("__main__",),
)
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
KEEPERS = {  # foreign packages that only these modules may import
    "starlette": {"edge", "process", "server"},
    "uvicorn": {"process", "protocol"},
    "pickletools": {"unpickler"},
    "python_multipart": {"form"},
    "torch": {"exporter", "learner"},
    "fastai": {"exporter"},
    "timm": {"exporter"},
    "onnx": {"exporter", "quantiser"},
    "onnxruntime": {"engine", "quantiser"},
    "aiohttp": {"remote", "transfer"},
    "prometheus_client": {"metrics"},
}


def modules() -> dict[str, Path]:
    """The modules of app/ by name; a package counts as the module it is."""
    files = {path.stem: path for path in APP.glob("*.py") if path.stem != "__init__"}
    return files | {path.parent.name: path for path in APP.glob("*/__init__.py")}


def imports(path: Path) -> Iterator[str]:
    """Every module named in an import, at the top or inside a function, or given to importlib."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            if isinstance(node.args[0], ast.Constant):  # or the module of a class that is allowed by name
                yield node.args[0].value


def test_every_module_has_a_floor() -> None:
    assert modules().keys() == FLOOR.keys()


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_go_down_the_floors_only(name: str) -> None:
    below = {module.removeprefix("app.") for module in imports(modules()[name]) if module.startswith("app.")}
    assert {module for module in below if FLOOR[module.partition(".")[0]] >= FLOOR[name]} == set()


@pytest.mark.parametrize("package", sorted(KEEPERS))
def test_a_foreign_package_has_one_keeper(package: str) -> None:
    users = {
        name for name, path in modules().items() if any(m.partition(".")[0] == package for m in imports(path))
    }
    assert users == KEEPERS[package]


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_a_module_fits_in_the_head(name: str) -> None:
    assert len(modules()[name].read_text().splitlines()) <= 350


def test_the_server_starts_without_what_it_may_not_need() -> None:
    # a fifth of the start for aiohttp, seconds and hundreds of megabytes for the others
    unwanted = {"aiohttp", "fastai", "onnx", "timm", "torch", "torchvision"}
    found = f"import sys, app.process; print(*sorted({unwanted} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", found], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("\n", "")


def test_nothing_asserts_against_users() -> None:
    for path in modules().values():
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
