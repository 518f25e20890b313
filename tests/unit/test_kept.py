"""What many look at is asked for as often as for one, and for a small part of the time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial

import pytest
from anyio import create_task_group, move_on_after, run, to_thread, wait_all_tasks_blocked

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.servers.console.kept import GOOD_FOR_S, SHARE, Kept
from tests.waiting import patience_s


@dataclass
class Counting:
    """Takes so long to count, by a clock of its own."""

    takes_s: float = 0.0
    now: float = 0.0
    asked: int = 0
    alike: int = 1
    kept: Kept[int] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(self.ask, lambda: self.now, share=lambda: SHARE * self.alike)

    def ask(self) -> int:
        self.asked += 1
        self.now += self.takes_s
        return self.asked

    def after(self, seconds: float) -> int:
        self.now += seconds
        return run(self.kept.get)


def test_it_is_asked_anew_when_it_is_old() -> None:
    counting = Counting()
    assert [counting.after(seconds) for seconds in (0, 0, GOOD_FOR_S - 1, 1)] == [1, 1, 1, 2]


def test_what_takes_long_is_asked_for_less_often() -> None:
    counting = Counting(takes_s=3.0)
    assert [counting.after(seconds) for seconds in (0, GOOD_FOR_S, 3.0 * SHARE)] == [1, 1, 2]


def test_however_many_there_are_they_take_that_part_together() -> None:
    counting = Counting(takes_s=3.0, alike=4)
    assert [counting.after(seconds) for seconds in (0, 3.0 * SHARE, 3.0 * SHARE * 3)] == [1, 1, 2]


def test_who_wants_it_as_it_is_now_renews_it_for_all() -> None:
    counting = Counting()
    assert [counting.after(0), run(partial(counting.kept.get, anew=True)), counting.after(GOOD_FOR_S - 1)] == [1, 2, 2]


def test_of_many_at_once_one_asks() -> None:
    counting = Counting()

    async def all_of_them() -> None:
        async with create_task_group() as group:
            for _ in range(20):
                group.start_soon(counting.kept.get)

    run(all_of_them)
    assert counting.asked == 1


def test_an_outage_is_not_kept() -> None:
    found: list[int] = []

    def ask() -> int:
        found.append(1)
        if len(found) == 1:
            raise StoreUnavailable
        return 7

    kept = Kept(ask)
    with pytest.raises(StoreUnavailable):
        run(kept.get)
    assert run(kept.get) == 7


def test_who_waits_while_another_asks_has_that_answer() -> None:
    """If it was begun after one came, and an outage too: else as many waited for it one after the other."""
    asked: list[int] = []
    failed: list[int] = []

    def ask() -> int:
        asked.append(1)
        raise StoreUnavailable

    kept = Kept(ask)

    async def get() -> None:
        try:
            await kept.get(anew=True)
        except StoreUnavailable:
            failed.append(1)

    async def all_of_them() -> None:
        async with create_task_group() as group:
            for _ in range(20):
                group.start_soon(get)

    run(all_of_them)
    assert (len(asked), len(failed)) == (1, 20)


def test_who_goes_away_while_asking_leaves_it_to_the_next() -> None:
    counting = Counting()

    async def one_goes() -> int:
        with move_on_after(0):
            await counting.kept.get()
        return await counting.kept.get()

    assert run(one_goes) == counting.asked


def test_what_was_begun_before_one_came_is_not_as_it_is_now() -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        begun.set()
        assert go_on.wait(patience_s())
        return len(asked)

    kept = Kept(ask)
    answers: list[int] = []

    async def two() -> None:
        async def one() -> None:
            answers.append(await kept.get(anew=True))

        async with create_task_group() as group:
            group.start_soon(one)
            await to_thread.run_sync(begun.wait, patience_s())
            group.start_soon(one)
            await wait_all_tasks_blocked()
            go_on.set()

    run(two)
    assert answers == [1, 2]
