"""The documents are true: their commands run, their answers are the server's, their links lead somewhere."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import __version__, cli
from tests.conftest import ROOT, ServerProcess
from tests.generate import DOCUMENTS

README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
BLOCK = re.compile(r"^[ ]*```(\w+)\n(.*?)^[ ]*```", re.S | re.M)
PATH = re.compile(r"\b(?:app|fastai_now|tests|docs|notebook|examples|benchmarks)/[\w./-]*\w")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in the `sh` blocks of a page."""
    for language, block in BLOCK.findall(page.read_text()):
        if language == "sh":
            yield from (shlex.split(line, comments=True) for line in block.splitlines())


def all_commands(program: str) -> list[Any]:
    """Return the commands of all pages that begin with a program, as parameters of a test."""
    found = [words for page in PAGES for words in commands(page) if words and words[0] == program]
    return [pytest.param(words, id=" ".join(words)) for words in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_generated_document_agrees_with_its_source(path: Path) -> None:
    assert path.read_text("utf-8") == DOCUMENTS[path](), "run: python -m tests.generate"


def test_the_readme_fits_in_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("words", all_commands("make"))
def test_every_make_command_has_a_target(words: list[str]) -> None:
    make = shutil.which("make") or pytest.skip("make is not installed")
    subprocess.run([make, "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("words", all_commands("python"))
def test_every_python_command_names_a_module_and_files_that_exist(words: list[str]) -> None:
    assert words[1] == "-m"
    assert importlib.util.find_spec(words[2]), words[2]
    for path in filter(PATH.fullmatch, words):
        assert (ROOT / path).exists(), path


def own_commands() -> Iterator[list[str]]:
    """Yield the arguments of each `fastai-now` command in the README, in blocks and within sentences."""
    blocks = [" ".join(words) for words in commands(ROOT / "README.md")]
    for text in [*blocks, *re.findall(r"`(fastai-now [^`]+)`", README)]:
        yield from (shlex.split(line)[1:] for line in text.split(" && ") if line.startswith("fastai-now "))


def test_the_own_commands_of_the_readme_are_those_of_the_command_line() -> None:
    found = list(own_commands())
    assert {words[0] for words in found} == {"serve", "inspect", "predict", "check", "now"}
    for words in found:
        assert cli._parser("fastai-now").parse_args(words).command == words[0]


def test_the_commands_of_the_readme_that_end_give_an_answer(tmp_path: Path) -> None:
    for photo in (ROOT / "app" / "samples").iterdir():
        (tmp_path / photo.stem).mkdir()
        shutil.copy(photo, tmp_path / photo.stem)
    places = {"valid": str(tmp_path), "FILE": "tests/data/v1/export.pkl"}
    for words in own_commands():
        if words[0] in ("inspect", "predict", "check"):
            command = [sys.executable, "-m", "fastai_now", *(places.get(word, word) for word in words)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_curl_commands_of_the_readme_give_its_answers(start_server: Callable[..., ServerProcess]) -> None:
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    server = start_server()
    server.wait_for("ready after")
    pairs = re.findall(r"```sh\n(curl .*)\n```\n\n```json\n(.*)\n```", README)
    assert len(pairs) == README.count("\ncurl ")
    for command, documented in pairs:
        words = shlex.split(command.replace("http://127.0.0.1:8080", server.url))
        answer = subprocess.run([curl, *words[1:]], cwd=ROOT, capture_output=True, check=True).stdout
        assert_agrees(
            json.loads(documented.replace(", ...]", ', "..."]').replace(": ...", ': "..."')),
            json.loads(answer),
        )


def assert_agrees(documented: Any, answer: Any) -> None:
    """Compare a documented answer with a real one: numbers to the printed digits, "..." with anything."""
    if isinstance(documented, dict):
        assert list(documented) == list(answer)
        for name, value in documented.items():
            assert_agrees(value, answer[name])
    elif isinstance(documented, list):
        assert documented[-1] == "..."
        for value, found in zip(documented[:-1], answer, strict=False):
            assert_agrees(value, found)
    elif isinstance(documented, float):
        assert answer == pytest.approx(documented, abs=0.002)
    else:
        assert documented in ("...", answer)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", file.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_a_page_exists(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "decisions.md"):
        return  # they also name the past
    for path in set(PATH.findall(re.sub(r"https?://\S+", "", page.read_text()))):
        assert (ROOT / path).exists(), path


def test_the_house_lists_every_package() -> None:
    listed = set(re.findall(r"`(\w+/)`", (ROOT / "docs" / "house.md").read_text()))
    packages = {f"{path.parent.name}/" for path in (ROOT / "app").glob("*/__init__.py")}
    assert packages <= listed


def test_the_training_of_the_demo_starts() -> None:
    command = [sys.executable, "-m", "examples.train_garments", "--help"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_the_changelog_has_the_version_of_the_code() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
