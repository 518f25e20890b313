"""A queue whose owners take turns."""

from __future__ import annotations

import queue

import pytest

from opensend_milter.core.fair_queue import FairQueue


def filled(*items: str) -> FairQueue[str]:
    made = FairQueue[str](lambda item: item[0])
    for item in items:
        made.put(item)
    return made


def test_owners_take_turns_and_each_keeps_his_order() -> None:
    made = filled("a1", "a2", "a3", "b1", "c1", "b2")
    assert [made.get() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_comes_late_waits_for_one_of_each_other() -> None:
    made = filled("a1", "a2", "a3", "a4")
    assert made.get() == "a1"
    made.put("b1")
    assert [made.get(), made.get()] == ["a2", "b1"]


def test_the_end_comes_behind_all_others() -> None:
    made = filled("a1")
    made.put(None)
    made.put("b1")
    assert [made.get(), made.get(), made.get(), made.get()] == ["a1", "b1", None, None]


def test_it_says_how_many_wait_and_that_none_does() -> None:
    made = filled("a1", "a2")
    assert (made.qsize(), made.empty()) == (2, False)
    assert [made.get(), made.get()] == ["a1", "a2"]
    assert (made.qsize(), made.empty()) == (0, True)
    with pytest.raises(queue.Empty):
        made.get(timeout=0)
