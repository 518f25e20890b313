"""Lanes take turns."""

from __future__ import annotations

from collections import Counter

from opensend_milter.core.model import Lane, UserId
from opensend_milter.servers.worker.delivering import Turns


def lanes(*names: str) -> list[Lane]:
    return [Lane(UserId(name), None) for name in names]


def test_each_lane_is_asked_as_often_as_the_others() -> None:
    """However the list comes, and however often it is asked for."""
    turns, due = Turns(), lanes("c", "a", "b")
    asked = Counter(lane.user_id for _ in range(30) if (lane := turns.next(lambda: due)))
    assert asked == {"a": 10, "b": 10, "c": 10}
    turns._listed_at = float("-inf")
    assert turns.next(lambda: due) == Lane(UserId("a"), None)
    turns._listed_at = float("-inf")
    assert turns.next(lambda: due) == Lane(UserId("b"), None), "a new list goes on where the old one was"


def test_a_lane_with_nothing_due_is_not_asked_again() -> None:
    turns = Turns()
    first, second = lanes("a", "b")
    assert turns.next(lambda: [first, second]) == first
    turns.is_done(first)
    assert [turns.next(list[Lane]) for _ in range(3)] == [second] * 3
    turns.is_done(second)
    assert turns.next(lambda: [first]) == first, "an empty list is asked for at once"


def test_lanes_of_one_user_are_apart() -> None:
    """One courier that is out stops no other."""
    turns = Turns()
    both = [Lane(UserId("a"), "ses"), Lane(UserId("a"), None)]
    assert {turns.next(lambda: both), turns.next(lambda: both)} == set(both)


def test_nothing_is_due() -> None:
    assert Turns().next(list[Lane]) is None
