"""The table of faults is that of the tests."""

from tests.faults import DOCUMENT, FAULTS, NOT_TESTED, document, shown_by

ROWS = {row for rows in FAULTS.values() for row in rows}


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    assert DOCUMENT.read_text("utf-8") == document(), "run: python -m tests.faults"


def test_a_row_is_shown_by_tests_or_says_why_not() -> None:
    shown = shown_by().keys()
    assert shown <= ROWS
    assert NOT_TESTED.keys() <= ROWS - shown
