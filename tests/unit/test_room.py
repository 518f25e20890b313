"""What all share: nobody has more than his part, who waits has his turn, and no wait is for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from opensend_milter.core.model import KeyId
from opensend_milter.servers.web import room
from opensend_milter.servers.web.refusals import Refused
from opensend_milter.servers.web.room import LARGE_BYTES, LARGEST_AT_ONCE, MOST_REQUESTS, Room, Stock, Visit
from tests.linear import assert_linear

LARGEST = 10 * LARGE_BYTES
KEY, OTHER = KeyId("0198c5a2-7f00-7abc-8def-0123456789ab"), KeyId("0198c5a2-7f00-7abc-8def-ba9876543210")


def refused(take: Callable[[], object]) -> tuple[int, str]:
    """Return what somebody is told who finds no room; he is always told when to come again."""
    with pytest.raises(Refused) as found:
        take()
    return _told(found.value)


async def refused_later(take: Callable[[], Awaitable[object]]) -> tuple[int, str]:
    with pytest.raises(Refused) as found:
        await take()
    return _told(found.value)


def _told(refusal: Refused) -> tuple[int, str]:
    assert int((refusal.headers or {})["Retry-After"]) >= 1
    return refusal.status_code, refusal.code


async def begun(*waits: Awaitable[object]) -> list[asyncio.Task[object]]:
    """Let them wait, in this order."""
    tasks = [asyncio.ensure_future(_of(wait)) for wait in waits]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def _of(wait: Awaitable[object]) -> object:
    return await wait


def done(tasks: list[asyncio.Task[object]]) -> list[bool]:
    return [task.done() for task in tasks]


def test_nobody_takes_more_than_his_part() -> None:
    """429 for who has it, 503 for whom others leave nothing."""
    stock = Stock(10, 6)
    for _ in range(6):
        stock.take("a")
    assert refused(lambda: stock.take("a")) == (429, "rate_limited")
    stock.take("b", 4)
    assert refused(lambda: stock.take("b")) == (503, "unavailable")
    stock.give_back("a")
    stock.take("b")


def test_who_waits_is_served_as_soon_as_there_is_enough() -> None:
    """In order; but nobody waits for one who can have no more before he gives some back."""

    async def main() -> None:
        stock = Stock(10, 6)
        await stock.wait_for("a", 6)
        tasks = await begun(stock.wait_for("a", 2), stock.wait_for("b", 6), stock.wait_for("c", 1))
        assert done(tasks) == [False, False, False]  # c's little would keep b waiting for ever
        stock.give_back("a", 6)
        await asyncio.gather(*tasks)
        assert refused(lambda: stock.take("c", 2)) == (503, "unavailable")

    asyncio.run(main())


def test_of_many_that_wait_each_has_his_turn() -> None:
    """One more of somebody with many comes after the first of somebody else."""

    async def main() -> None:
        stock = Stock(1, 1)
        stock.take("a")
        tasks = await begun(*(stock.wait_for(who) for who in ("a", "a", "a", "b", "b")))
        holder, order = "a", []
        for _ in tasks:
            before = done(tasks)
            stock.give_back(holder)
            await begun()
            (served,) = [place for place, is_done in enumerate(done(tasks)) if is_done and not before[place]]
            holder = "aaabb"[served]
            order.append(holder)
        assert order == ["a", "b", "a", "b", "a"]

    asyncio.run(main())


def test_no_wait_is_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that was in vain leave anything behind."""
    monkeypatch.setattr(room, "LONGEST_WAIT_S", 0.01)

    async def main() -> None:
        stock = Stock(10, 6)
        stock.take("a", 6)
        assert await refused_later(lambda: stock.wait_for("a")) == (429, "rate_limited")
        assert await refused_later(lambda: stock.wait_for("b", 5)) == (503, "unavailable")
        large, small = await begun(stock.wait_for("b", 5), stock.wait_for("c", 4))
        large.cancel()
        await small  # it was behind the large one
        stock.give_back("c", 4)
        stock.give_back("a", 6)
        stock.take("b", 6)
        assert not stock._waiting

    asyncio.run(main())


def test_what_is_granted_to_one_that_goes_at_that_moment_is_not_lost() -> None:
    async def main() -> None:
        stock = Stock(1, 1)
        stock.take("a")
        (task,) = await begun(stock.wait_for("b"))
        stock.give_back("a")
        task.cancel()
        await begun()
        stock.take("c")

    asyncio.run(main())


def test_a_request_counts_for_its_address_until_its_key_is_known() -> None:
    """Many keys may share an address, and many addresses a key."""
    place = Room(LARGEST, 50)
    part = MOST_REQUESTS // 2
    visits = [Visit(place, "192.0.2.1") for _ in range(part)]
    assert refused(lambda: Visit(place, "192.0.2.1")) == (429, "rate_limited")
    for visit in visits:
        visit.belongs_to(KEY)
    late = Visit(place, "192.0.2.1")
    assert refused(lambda: late.belongs_to(KEY)) == (429, "rate_limited")
    late.belongs_to(OTHER)
    for visit in [late, *visits]:
        visit.leave()
    assert place.requests._held == {}


def test_the_last_request_that_there_is_room_for_may_show_its_key() -> None:
    place = Room(LARGEST, 100)
    visits = [Visit(place, f"192.0.2.{number}") for number in range(MOST_REQUESTS)]
    for visit in visits:
        visit.belongs_to(KEY)


def test_who_has_left_makes_room_once() -> None:
    """A page that is told what is new leaves before its answer ends."""
    place = Room(LARGEST, 100)
    visits = [Visit(place, "192.0.2.1") for _ in range(MOST_REQUESTS)]
    for _ in range(2):
        visits[0].leave()
    Visit(place, "192.0.2.1")
    assert refused(lambda: Visit(place, "192.0.2.2")) == (503, "unavailable")


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    place = Room(LARGEST, 1)
    for number in range(MOST_REQUESTS // 100):
        Visit(place, f"2001:db8::{number}")
    assert refused(lambda: Visit(place, "2001:db8::ffff:1")) == (429, "rate_limited")
    Visit(place, "2001:db8:0:1::1")


def test_large_bodies_have_room_for_the_sizes_of_some_and_each_key_for_one_at_least() -> None:
    async def main() -> None:
        place = Room(LARGEST, 1)
        visits = [Visit(place, f"192.0.2.{number}") for number in range(LARGEST_AT_ONCE + 1)]
        for visit in visits[:-1]:
            await visit.expect(LARGEST)
        (task,) = await begun(visits[-1].expect(LARGEST))
        assert not task.done()
        visits[0].empty()
        await task

    asyncio.run(main())


def test_the_work_grows_with_those_who_wait() -> None:
    """A key may bring thousands: bulks, each with hundreds of messages."""

    async def main(count: int) -> None:
        stock = Stock(10, 5)

        async def one(who: str) -> None:
            async with stock.one_for(who):
                await asyncio.sleep(0)

        await asyncio.gather(*(one("ab"[number % 2]) for number in range(count)))

    assert_linear(lambda count: asyncio.run(main(count)), 500)
