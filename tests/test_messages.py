"""Foreign text on one line: the oracle is the Unicode database."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CheckpointError, plain

BIDI = ("L", "R", "AL", "EN", "AN", "ES", "ET", "CS", "NSM", "ON", "WS", "BN")


@pytest.mark.fault("M32")
@given(st.text(), st.integers(1, 400))
def test_foreign_text_is_one_visible_line_of_the_limit(text: str, limit: int) -> None:
    shown = plain(text, limit)
    assert len(shown) <= limit
    assert len(f"a{shown}b".splitlines()) == 1
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert {unicodedata.bidirectional(c) for c in shown} <= {*BIDI, "S", ""}  # no embedding and no override


@pytest.mark.parametrize("text", ["Bär, großer", "बाघ", "パンダ", "دب", "👩‍🔬", "a b"])
def test_names_in_any_script_stay_as_they_are(text: str) -> None:
    assert plain(text) == text


def test_longer_text_ends_in_an_ellipsis() -> None:
    assert plain("x" * 10**6, 10) == "xxxxxxxxx…"
    assert plain("x" * 300) == "x" * 300


def test_the_message_of_every_error_is_one_line() -> None:
    assert str(CheckpointError("a\x1b[31m\nb\u202ec")) == "a [31m bc"
