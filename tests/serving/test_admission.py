"""Admission by the estimated wait, on a clock of the test's own."""

from contextlib import ExitStack

import pytest

from app.errors import Unavailable
from app.serving.admission import (
    MAX_IN_FLIGHT,
    MAX_WAIT,
    MIN_ADMITTED,
    QUEUE_TIMEOUT,
    Admission,
)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """An admission whose visitors each take so many seconds, one after another."""

    def __init__(self, seconds: float) -> None:
        self.clock = Clock()
        self.admission = Admission(self.clock)
        self.seconds = seconds
        self.inside: list[ExitStack] = []
        for _ in range(50):  # so many answers and the pace is known
            self.enter()
            self.answer()

    def enter(self) -> float:
        stack = ExitStack()
        deadline = stack.enter_context(self.admission.slot())
        self.inside.append(stack)
        return deadline

    def answer(self) -> None:
        self.clock.now += self.seconds
        self.inside.pop(0).close()

    def fill(self) -> Unavailable:
        """Let in as many as may come."""
        while len(self.inside) <= MAX_IN_FLIGHT:
            try:
                self.enter()
            except Unavailable as refusal:
                return refusal
        raise AssertionError("all were let in")


@pytest.mark.parametrize("seconds", [0.03, 0.05, 0.2])
def test_as_many_come_in_as_can_be_answered_in_time(seconds: float) -> None:
    house = House(seconds)
    refusal = house.fill()
    assert len(house.inside) * seconds == pytest.approx(MAX_WAIT, abs=2 * seconds)
    assert refusal.code == "overloaded"


def test_a_refusal_says_when_there_will_be_room() -> None:
    house = House(0.05)
    refusal = house.fill()
    assert refusal.retry_after == 2  # the whole seconds until those inside are answered
    assert "31 photos are already waiting, about 1.5 seconds" in str(refusal)


def test_a_quick_network_does_not_let_in_more_than_fit_in_memory() -> None:
    house = House(0.001)
    house.fill()
    assert len(house.inside) == MAX_IN_FLIGHT


def test_however_slow_the_network_is_somebody_is_let_in() -> None:
    house = House(60.0)
    house.fill()
    assert len(house.inside) == MIN_ADMITTED


def test_while_too_many_come_the_queue_is_kept_short_and_afterwards_it_may_be_long_again() -> None:
    house = House(0.05)
    house.fill()
    while house.admission.wait > MAX_WAIT / 2 + 0.05:
        many = len(house.inside)
        house.answer()
        house.fill()
        assert len(house.inside) == many - 1
    for _ in range(20):  # one leaves, and of those that crowd in one has room
        house.answer()
        house.fill()
        assert house.admission.wait <= MAX_WAIT / 2 + 2 * 0.05
    while house.inside:
        house.answer()
    house.fill()
    assert house.admission.wait == pytest.approx(MAX_WAIT, abs=0.1)


def test_an_answer_is_of_use_for_a_while() -> None:
    house = House(0.05)
    assert house.enter() == house.clock.now + QUEUE_TIMEOUT


def test_failures_and_cancellations_do_not_change_the_rate() -> None:
    house = House(0.05)
    house.enter()
    for _ in range(100):
        with pytest.raises(ValueError, match="no picture"), house.admission.slot():
            raise ValueError("no picture")
    assert house.admission.in_flight == 1
    assert house.admission.wait == pytest.approx(0.05)
