"""The package: its requirements, the platforms that have them, the installed command, and uv."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA, ROOT, SECONDS, ServerProcess, image_bytes, started

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BESIDE_PYTHON = Path(sys.executable).parent
PHOTO = str(ROOT / "app" / "samples" / "dress.jpg")


def requirements(name: str) -> set[str]:
    """The requirements in a file, without those of the files that it includes, and without quotes."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return {line.replace('"', "'") for line in lines if line and not line.startswith(("#", "-r"))}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return the standard output of a command that must succeed."""
    ended = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    return ended.stdout


# --- the requirements --------------------------------------------------------------------------------------


def test_the_requirement_files_are_those_of_the_package() -> None:
    project = PROJECT["project"]
    assert requirements("requirements-serve.txt") == set(project["dependencies"])
    assert requirements("requirements.txt") == set(project["optional-dependencies"]["full"])
    assert requirements("requirements-cluster.txt") == set(project["optional-dependencies"]["cluster"])


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize(
    ("platform", "macos"),
    [
        ("x86_64-pc-windows-msvc", ""),
        ("x86_64-apple-darwin", "13.0"),
        ("aarch64-apple-darwin", "14.0"),
        ("aarch64-manylinux_2_28", ""),
    ],
)
def test_every_requirement_has_a_wheel_for_a_platform(platform: str, macos: str, python: str) -> None:
    """uv evaluates the markers as on that platform, and builds nothing; pip takes the markers of its own."""
    command = [BESIDE_PYTHON / "uv", "pip", "compile", "--quiet", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python, "requirements-serve.txt"]
    environment = {**os.environ, **({"MACOSX_DEPLOYMENT_TARGET": macos} if macos else {})}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "error sending request" in ended.stderr:
        pytest.skip("the package registry cannot be reached")
    assert ended.returncode == 0, ended.stderr
    runtime = "1.23.2" if platform == "x86_64-apple-darwin" else "1.32.0"
    assert f"onnxruntime=={runtime}" in ended.stdout


# --- installed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone, as `pip install .` leaves it; its requirements are the tests' own."""
    folder = tmp_path_factory.mktemp("installed")
    command = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
    ]
    run(sys.executable, *command, folder, ".", cwd=ROOT)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with a module `app`, such as a notebook's folder with the demo of a Space."""
    (tmp_path / "app.py").write_text("raise SystemExit('this is the app of another project')")
    return tmp_path


def test_the_package_has_one_name_at_the_top(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"bin", "fastai_now"}


def test_the_package_has_the_cell_that_people_paste(installed: Path) -> None:
    cell = installed / "fastai_now" / "cells" / "deploy_cell.py"
    assert cell.read_bytes() == (ROOT / "notebook" / "deploy_cell.py").read_bytes()


@pytest.mark.slow
def test_the_command_serves_an_export_without_any_settings(installed: Path, elsewhere: Path) -> None:
    shutil.copy(DATA / "v1" / "export.pkl", elsewhere)
    command = [str(installed / "bin" / "fastai-now"), "serve", "export.pkl", "--port", "0"]
    with started(command, cwd=elsewhere, PYTHONPATH=str(installed)) as server:
        server.url = server.wait_for(r"running on (http://[\d.:]+)")[1]
        server.wait_for("ready after")
        answer = server.post(image_bytes("a05_640x480.jpg")).json()
    assert answer["result"] == "teddys"


@pytest.mark.slow
def test_the_command_finds_settings_in_the_working_directory_or_serves_the_demo(
    installed: Path, elsewhere: Path
) -> None:
    command = (installed / "bin" / "fastai-now", "predict", PHOTO)
    assert "dress (98.4%)" in run(*command, cwd=elsewhere, PYTHONPATH=str(installed))
    shutil.copy(DATA / "v1" / "export.pkl", elsewhere)
    (elsewhere / "settings.toml").write_text('model_url = "export.pkl"\n')
    assert re.search("black|grizzly|teddys", run(*command, cwd=elsewhere, PYTHONPATH=str(installed)))
    module = (sys.executable, "-m", "fastai_now", "--help")
    assert "usage: fastai-now" in run(*module, cwd=elsewhere, PYTHONPATH=str(installed))


@pytest.mark.slow
def test_the_installed_command_deploys_the_same_files(installed: Path, elsewhere: Path) -> None:
    command = ["now", "--dry-run", "--name", "demo"]
    listed = run(installed / "bin" / "fastai-now", *command, cwd=elsewhere, PYTHONPATH=str(installed))
    from_checkout = run(sys.executable, "-m", "app", *command, cwd=ROOT)
    files = [re.findall(r"^ *[\d,]+  (\S+)$", text, re.M) for text in (listed, from_checkout)]
    assert files[0] == files[1] != []


def test_a_model_on_the_command_line_goes_before_the_settings_file(
    tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    (tmp_path / "settings.toml").write_text('model_url = "nowhere.pth"\nclasses = ["a", "b"]\n')
    export = str(DATA / "v1" / "export.pkl")
    with started(
        [sys.executable, "-m", "app", "serve", export, "--port", "0"], cwd=tmp_path, PYTHONPATH=str(ROOT)
    ) as server:
        server.wait_for("ready after")
    named = ["serve", export, "--port", "0", "--settings", str(tmp_path / "settings.toml")]
    with started([sys.executable, "-m", "app", *named]) as server:
        server.wait_for("classes lists a, b, but the file itself says black")


# --- uv ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_uv_runs_the_module_and_the_command_of_a_checkout(version: str, tmp_path: Path) -> None:
    """Another Python than that of the tests, in a fresh environment: what people without make type."""
    # pyenv's commands on the PATH run only the versions that it has activated
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*pyenv.glob(f"{version}.*/bin/python"), *Path("/usr/bin").glob(f"python{version}")]
    if not found:
        pytest.skip(f"there is no Python {version}")
    for name in ("app", "fastai_now"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    deployed = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for name in ("pyproject.toml", "README.md", ".gitignore", *deployed):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for command in (("-m", "app"), ("fastai-now",)):
        words = (BESIDE_PYTHON / "uv", "run", "--quiet", "--python", found[0], *command, "predict", PHOTO)
        assert "dress (98.4%)" in run(*words, cwd=tmp_path, VIRTUAL_ENV="")
