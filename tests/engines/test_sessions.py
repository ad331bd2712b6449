"""The choice between a session of all cores and one of a single thread."""

import threading
from typing import Any

import pytest

from app.engines.sessions import MANY, Sessions
from tests.conftest import SECONDS


class Held:
    """A session that answers when it is let, with its number of threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def run(self, names: Any, inputs: Any) -> list[int]:
        self.entered.release()
        assert self.open.wait(SECONDS)
        return [self.threads]


def answers_of_three_calls(cores: int) -> tuple[list[int], list[int]]:
    """The threads of a call alone and of two beside it, and then of one alone again."""
    sessions = Sessions(Held, cores)  # type: ignore[arg-type]
    wide, narrow = sessions.wide, sessions.narrow
    found: list[int] = []
    calls = [threading.Thread(target=lambda: found.extend(sessions.run([], {}))) for _ in range(3)]
    for call, session in zip(calls, (wide, narrow, narrow), strict=True):
        call.start()
        assert session.entered.acquire(timeout=SECONDS)
    for session in (wide, narrow):
        session.open.set()
    for call in calls:
        call.join(SECONDS)
    return sorted(found), sessions.run([], {})


def test_a_call_alone_uses_all_cores_and_each_call_beside_it_one() -> None:
    beside, alone = answers_of_three_calls(cores=16)
    assert beside == [1, 1, 16]
    assert alone == [16]


def test_few_cores_have_one_session_for_all_calls() -> None:
    beside, alone = answers_of_three_calls(cores=MANY - 1)
    assert beside == [MANY - 1] * 3
    assert alone == [MANY - 1]


class Failing(Held):
    """A session that fails without names."""

    def run(self, names: Any, inputs: Any) -> list[int]:
        if not names:
            raise ValueError("no names")
        return [self.threads]


def test_a_call_that_failed_is_not_under_way_any_more() -> None:
    sessions = Sessions(Failing, cores=16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no names"):
        sessions.run([], {})
    assert sessions.run(["features"], {}) == [16]
