"""The house: which package may import which, and how large a module may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

APP = ROOT / "app"
FLOORS = (  # highest first; packages and modules on one floor do not import each other
    ("__main__",),
    ("cli", "server"),
    ("commands",),
    ("exporting",),
    ("web",),
    ("cluster",),
    ("serving",),
    ("settings_file",),
    ("catalog",),
    ("engines",),
    ("graphs", "settings"),
    ("checkpoints", "fetching", "photos"),
    ("logs",),
    ("progress",),
    ("environment", "toml_file"),
    ("cpus", "errors", "memory", "metrics", "types"),
)
FLOOR = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
KEEPERS = {  # foreign packages, each imported by one of our packages; the graph tools serve two
    "starlette": {"web"},
    "uvicorn": {"web"},
    "h11": {"web"},
    "pickletools": {"checkpoints"},
    "python_multipart": {"web"},
    "torch": {"engines", "graphs"},
    "fastai": {"graphs"},
    "timm": {"graphs"},
    "onnx": {"graphs"},
    "onnxruntime": {"engines", "graphs"},
    "aiohttp": {"fetching"},
    "segno": {"commands"},
    "prometheus_client": {"metrics"},
    "ray": {"cluster"},
}
MAX_IMPORTS = 8  # modules of the project

MODULES = {
    ".".join(path.relative_to(APP).with_suffix("").parts): path
    for path in sorted(APP.rglob("*.py"))
    if path != APP / "__init__.py"
}


def room(module: str) -> str:
    """The package of a module, or the module itself where it stands beside the packages."""
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Every module named in an import, at the top or inside a function, or given to importlib."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name.removeprefix("app.") in MODULES else node.module or "" for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            if isinstance(node.args[0], ast.Constant):  # or the module of a class that is allowed by name
                yield node.args[0].value


def ours(path: Path) -> set[str]:
    """The modules of the project that a module imports."""
    return {module.removeprefix("app.") for module in imports(path) if module.startswith("app.")}


def test_every_package_has_a_floor() -> None:
    assert {room(module) for module in MODULES} == FLOOR.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_the_floors_only(name: str) -> None:
    others = {module for module in ours(MODULES[name]) if room(module) != room(name)}
    assert {module for module in others if FLOOR[room(module)] >= FLOOR[room(name)]} == set()


def test_the_modules_of_a_package_import_each_other_without_a_circle() -> None:
    rest = {name: {m for m in ours(path) if room(m) == room(name)} for name, path in MODULES.items()}
    while free := [name for name, needed in rest.items() if not needed & rest.keys()]:
        for name in free:
            del rest[name]
    assert rest == {}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_few_others(name: str) -> None:
    assert len(ours(MODULES[name])) <= MAX_IMPORTS


@pytest.mark.parametrize("package", sorted(KEEPERS))
def test_a_foreign_package_has_one_keeper(package: str) -> None:
    users = {
        room(name)
        for name, path in MODULES.items()
        if any(m.partition(".")[0] == package for m in imports(path))
    }
    assert users == KEEPERS[package]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_stays_short(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= 350


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.endswith("__init__")))
def test_importing_a_package_runs_nothing(name: str) -> None:
    (docstring,) = ast.parse(MODULES[name].read_text()).body
    assert isinstance(docstring, ast.Expr)


def test_the_server_starts_without_heavy_packages() -> None:
    # a fifth of the start for aiohttp, seconds and hundreds of megabytes for the others
    unwanted = {"aiohttp", "fastai", "onnx", "timm", "torch", "torchvision"}
    found = f"import sys, app.web.process; print(*sorted({unwanted} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", found], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("\n", "")


def test_nothing_asserts_against_users() -> None:
    for path in MODULES.values():
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
