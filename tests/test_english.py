"""Readers understand a sentence at once: the rules of tests/english.py hold in code and documents."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.english import nominal, read, refused

LIMIT = 2  # nominal words in 1,000, as in Starlette, uvicorn and httpx at most


@pytest.mark.parametrize(
    "path",
    ["README.md", "SECURITY.md", "CHANGELOG.md", "Makefile", "app", "docs", "examples", "tests/commands"],
)
def test_prose_is_read_once(path: str) -> None:
    report = read(ROOT / path)
    assert report.words > 0
    assert report.per_thousand <= LIMIT, report.nominal
    assert report.refused == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Refuse what is damaged.",
        "A delay for who retries at once.",
        "Whoever asks gets an answer.",
        "Say what was found.",
        "What comes in is read.",
    ],
)
def test_a_nominal_word_counts(sentence: str) -> None:
    assert len(nominal(sentence)) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "What is on this photo?",
        'The title is "What is on this photo?" by default.',
        "Clients who retry wait.",
        "A user, who has a key, may ask.",
        "Whatsoever and somewhat are other words.",
    ],
)
def test_questions_and_relative_clauses_do_not_count(sentence: str) -> None:
    assert nominal(sentence) == []


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("It is read anew.", "anew"),
        ("It is no photo.", "is no photo"),
        ("The colour is blue.", "colour"),
        ("It is normalised.", "normalised"),
        ("The log says so.", "says so"),
    ],
)
def test_words_that_the_house_does_not_use_are_found(sentence: str, word: str) -> None:
    assert refused(sentence) == [word]


def test_ordinary_words_are_not_refused() -> None:
    assert refused("There is no limit, and it is no longer an exercise to advise the promised.") == []


def test_prose_is_found_where_python_has_it(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""Read what is there."""\n\n'
        "# what comes\n# in is read\n"
        "def test_what_is_there_is_read():\n"
        '    raise ValueError(f"{1} is what was found in the file")\n'
        '    call("what", key="what")\n'
    )
    assert [(found.line, found.word) for found in read(file).nominal] == [
        (1, "what"),
        (5, "what"),
        (6, "what"),
        (3, "what"),
    ]
