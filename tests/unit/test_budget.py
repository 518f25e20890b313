"""What reading may cost: steps that are the same on every machine, and a clock as the last net."""

from __future__ import annotations

import pytest

from opensend_milter.core.budget import Budget, OutOfTimeError, OverBudgetError
from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Refuse
from opensend_milter.core.rules import Rule

FROM = b"From: a@example.org\r\n"
MANY_PARAMETERS = FROM + b"".join(
    [
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n',
        *[b"--b\r\nContent-Type: a/b" + b";a=b" * 4_000 + b"\r\n\r\nx\r\n"] * 900,
        b"--b--\r\n",
    ]
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def test_what_is_over_is_said_with_its_place() -> None:
    budget = Budget(10)
    budget.spend(10, "fields")
    with pytest.raises(OverBudgetError) as caught:
        budget.spend(1, "words")
    assert (caught.value.where, budget.exhausted_in) == ("words", "words")


def test_a_larger_message_may_cost_more() -> None:
    sizes = (0, 1_000, 100_000, 1_000_000, 40_000_000)
    steps = [Budget.of(size).steps for size in sizes]
    assert steps == sorted(set(steps))
    assert steps[-1] < 4_000_000


def test_time_is_looked_at_now_and_then_only() -> None:
    clock = Clock()
    budget = Budget(1_000_000, deadline=1, clock=clock)
    for _ in range(10_000):
        budget.spend(1, "fields")
    assert 0 < clock.looks < 10
    clock.now = 2
    with pytest.raises(OutOfTimeError):
        budget.spend(10_000, "fields")
    assert budget.exhausted_in is None, "nothing is said of the message"


def test_who_waits_for_nobody_has_no_deadline() -> None:
    Budget(1_000_000).spend(1_000_000, "fields")


@pytest.mark.case(73)
def test_a_message_over_its_budget_is_beyond_the_limits() -> None:
    budget = Budget.of(len(MANY_PARAMETERS))
    found = read(MANY_PARAMETERS, Limits(), budget)
    assert isinstance(found, Refuse)
    assert (found.code, found.rule) == (554, Rule.BEYOND_LIMITS)
    assert "in its parameters" in found.text
    assert budget.exhausted_in == "parameters"


def test_a_reader_out_of_time_says_nothing_of_the_message() -> None:
    with pytest.raises(OutOfTimeError):
        read(MANY_PARAMETERS, Limits(), Budget(10**9, deadline=-1))
