"""The documents say what is: their tree, their commands, their settings and their figures."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, ServerProcess
from tests.generate import DOCUMENTS

README = (ROOT / "README.md").read_text()


def tracked() -> list[str]:
    """The files of the project, without those that are ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout: the tree of the README is not compared")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def tree(document: str) -> list[str]:
    """The lines of the tree in a document."""
    block = re.search(r"```tree\n(.*?)```", document, re.S)
    assert block
    return block[1].splitlines()


def test_the_tree_in_the_readme_is_the_tree() -> None:
    lines = tree(README)
    shown, folders = set(), []
    for line in lines:
        name, _, comment = line.strip().partition("  ")
        assert comment.strip() or name.endswith("/"), name
        folders = [*folders[: (len(line) - len(line.lstrip())) // 2], name]
        shown.add("".join(folders))
    collapsed = {
        name
        for name in shown
        if name.endswith("/") and not any(s != name and s.startswith(name) for s in shown)
    }
    real = set()
    for file in tracked():
        folder = next((name for name in collapsed if file.startswith(name)), None)
        real.add(folder or file)
    opened = {name for name in shown if name.endswith("/")} - collapsed
    assert shown - opened == real


def test_the_house_lists_every_package() -> None:
    listed = set(re.findall(r"`(\w+/)`", (ROOT / "docs" / "house.md").read_text()))
    packages = {f"{path.parent.name}/" for path in (ROOT / "app").glob("*/__init__.py")}
    assert packages <= listed


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_generated_document_is_as_its_source(path: Path) -> None:
    assert path.read_text("utf-8") == DOCUMENTS[path](), "run: python -m tests.generate"


def test_the_commands_in_the_readme_are_targets_and_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (?:\w+=\S+ )*([\w-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_curl_line_in_the_readme_gives_the_answer_in_the_readme(
    start_server: Callable[..., ServerProcess],
) -> None:
    if not shutil.which("curl"):
        pytest.skip("there is no curl here: its line in the README is not tried")
    server = start_server()
    server.wait_for("ready after")
    line = re.search(r"^curl .*$", README, re.M)
    assert line
    command = shlex.split(line[0].replace("http://127.0.0.1:8080", server.url))
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert answer.startswith('{"result":"dress","confidence":0.')
    documented = re.search(r'^\{"result": "dress".*$', README, re.M)
    assert documented


def test_the_training_of_the_demo_starts() -> None:
    command = [sys.executable, "-m", "examples.train_garments", "--help"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_the_changelog_has_the_version_of_the_code() -> None:
    from app import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f'"version": "{__version__}"' in (ROOT / "app" / "web" / "view" / "openapi.json").read_text()


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)
