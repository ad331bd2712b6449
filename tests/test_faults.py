"""Every row of docs/faults.md is shown by a test, or has a reason."""

from tests.faults import FAULTS, NOT_TESTED, shown_by

ROWS = {row for rows in FAULTS.values() for row in rows}


def test_a_row_is_shown_by_tests_or_says_why_not() -> None:
    shown = shown_by().keys()
    assert shown <= ROWS
    assert NOT_TESTED.keys() <= ROWS - shown
