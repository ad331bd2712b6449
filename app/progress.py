"""The progress of long work: the callback that gets it, and the line that shows it."""

import sys
from typing import Protocol


class Report(Protocol):
    """A callback for the phase, the percentage if known, and of a download the bytes so far and in all."""

    def __call__(
        self, phase: str, percent: int | None, received: int | None = None, total: int | None = None
    ) -> None: ...


def progress_bar(phase: str, percent: int | None, received: int | None) -> str:
    """Return "downloading [#####     ] 50 %", or the megabytes if the total is unknown."""
    if percent is not None:
        return f"{phase} [{'#' * (percent // 4):25}] {percent} %"
    return phase if received is None else f"{phase}, {received / 1e6:.0f} MB"


def show_progress(
    phase: str, percent: int | None, received: int | None = None, total: int | None = None
) -> None:
    """Show the line on standard error if it is a terminal; an empty phase clears it."""
    if sys.stderr.isatty():
        bar = progress_bar(phase, percent, received)
        sys.stderr.write(f"\r\x1b[K{bar}")
        sys.stderr.flush()
