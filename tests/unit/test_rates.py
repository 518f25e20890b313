"""Rate limits: what a block, a refusal and a burst are, and that no interleaving grants more than the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core import rates
from opensend_milter.core.model import KeyId
from opensend_milter.core.rates import (
    Allowance,
    Ask,
    Blocks,
    Bucket,
    Decision,
    Grant,
    RateLimits,
    burst_of,
    client_of,
)

KEY = KeyId("0198c5a2-7f00-7abc-8def-0123456789ab")


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shared:
    """The shared buckets of a test: one dictionary for all its processes."""

    clock: Clock
    levels: dict[str, tuple[float, float]] = field(default_factory=dict)
    overrides: dict[KeyId, int] = field(default_factory=dict)
    asked: int = 0

    def lease(self, asks: Sequence[Ask]) -> list[Grant]:
        self.asked += 1
        return [self._lease(ask) for ask in asks]

    def _lease(self, ask: Ask) -> Grant:
        per_minute = self.overrides.get(ask.bucket.key_id or KeyId(""), ask.bucket.per_minute)
        if not per_minute:
            return Grant(0, 0.0, 0)
        level, at = self.levels.get(ask.bucket.name, (math.inf, 0.0))
        available = min(burst_of(per_minute), level + ask.back + (self.clock() - at) * per_minute / 60)
        granted = min(ask.most, int(available)) if available >= ask.least else 0
        self.levels[ask.bucket.name] = available - granted, self.clock()
        return Grant(granted, available - granted, per_minute)

    def close(self) -> None: ...


def check(blocks: Blocks, shared: Shared, buckets: Sequence[Bucket], count: int = 1) -> Decision:
    """Do what a process does for one caller."""
    while (decision := blocks.decide(buckets, count)) is None:
        asks = blocks.asks()
        blocks.note(asks, shared.lease(asks))
    return decision


def processes(count: int = 1) -> tuple[Clock, Shared, list[Blocks]]:
    clock = Clock()
    return clock, Shared(clock), [Blocks(clock) for _ in range(count)]


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "unknown"),
        ("unknown", "unknown"),
        ("192.0.2.7\r\nX: y", "unknown"),
    ],
)
def test_who_is_one_client(address: str, client: str) -> None:
    """IPv6 by /64; an IPv4 address written as IPv6 is the same client."""
    assert client_of(address) == client


@pytest.mark.parametrize(
    ("per_minute", "burst"), [(0, 0), (1, 1), (60, 60), (100, 100), (300, 100), (600, 100), (60_000, 10_000)]
)
def test_burst(per_minute: int, burst: float) -> None:
    """Ten seconds' worth, but a hundred where a minute allows them."""
    assert burst_of(per_minute) == burst


def test_no_limit_asks_nobody() -> None:
    _, shared, (blocks,) = processes()
    limits = RateLimits(total_per_minute=0, client_per_minute=0, key_per_minute=0, failed_per_minute=0)
    for _ in range(1_000):
        assert check(blocks, shared, limits.of_message("192.0.2.7", None)) == rates.UNLIMITED
    assert shared.asked == 0
    assert blocks.refusal(limits.of_failure("192.0.2.7")) is None


def test_key_with_a_limit_of_its_own() -> None:
    """It replaces the configured one, also where that is none; without one the store is not asked for each message."""
    clock, shared, (blocks,) = processes()
    buckets = [Bucket("key", "key:a", 0, KEY)]
    assert all(check(blocks, shared, buckets).allowed for _ in range(1_000))
    assert shared.asked == 1
    shared.overrides[KEY] = 5
    clock.now += rates.HELD_S
    allowed = [check(blocks, shared, buckets) for _ in range(10)]
    assert [one.allowed for one in allowed] == [True] * 5 + [False] * 5
    assert (allowed[-1].tier, allowed[-1].limit) == ("key", 5)
    shared.overrides.clear()
    clock.now += rates.HELD_S
    assert all(check(blocks, shared, buckets).allowed for _ in range(100))


def test_refusal_takes_nothing_from_the_others() -> None:
    clock, shared, (blocks,) = processes()
    wide, narrow = Bucket("client", "client:a", 600), Bucket("key", "key:a", 2, KEY)
    answers = [check(blocks, shared, [wide, narrow]) for _ in range(500)]
    assert [one.allowed for one in answers] == [True] * 2 + [False] * 498
    assert {one.tier for one in answers[2:]} == {"key"}
    assert sum(check(blocks, shared, [wide]).allowed for _ in range(500)) == 98
    clock.now += 30
    assert check(blocks, shared, [wide, narrow]).allowed


def test_two_processes_share() -> None:
    _, shared, (one, other) = processes(2)
    bucket = [Bucket("total", "total", 100)]
    granted = [check(blocks, shared, bucket).allowed for _ in range(100) for blocks in (one, other)]
    assert 90 <= sum(granted) <= 100


def test_bulk_at_once() -> None:
    """A hundred where a minute allows them, all or none."""
    _, shared, (blocks,) = processes()
    bucket = [Bucket("key", "key:a", 150, KEY)]
    assert check(blocks, shared, bucket, 60).allowed
    refused = check(blocks, shared, bucket, 60)
    assert not refused.allowed
    assert refused.retry_after_s == pytest.approx(20 / 2.5)
    assert check(blocks, shared, bucket, 40).allowed
    assert not check(blocks, shared, bucket, 1).allowed


def test_more_than_a_burst_is_told_when_a_part_of_it_may_come() -> None:
    """Not when all of it fits: that is never."""
    clock, shared, (blocks,) = processes()
    bucket = [Bucket("key", "key:a", 60, KEY)]
    for _ in range(10):
        assert check(blocks, shared, bucket).allowed
    refused = check(blocks, shared, bucket, 500)
    assert (refused.allowed, refused.remaining) == (False, 50)
    assert refused.retry_after_s == pytest.approx(10)
    clock.now += refused.retry_after_s
    assert check(blocks, shared, bucket, 60).allowed


@pytest.mark.parametrize(
    ("remaining", "reset_s", "refused", "retry_after_s"),
    [(0, 60, 1, 1), (0, 60, 25, 25), (0, 60, 60, 60), (0, 60, 500, 60), (3, 57, 10, 7), (0, 60, 0, 0)],
)
def test_when_the_refused_rest_may_come(remaining: int, reset_s: float, refused: int, retry_after_s: float) -> None:
    """All of it, or as much as a full bucket holds; where nothing was refused there is nothing to wait for."""
    stands = Decision(
        allowed=True, tier="key", retry_after_s=0, remaining=remaining, limit=60, reset_s=reset_s
    ).with_refused(refused)
    assert (stands.allowed, stands.retry_after_s) == (refused == 0, retry_after_s)
    assert (stands.remaining, stands.reset_s) == (remaining, reset_s)


def test_how_a_limit_stands() -> None:
    clock, shared, (blocks,) = processes()
    buckets = [Bucket("client", "client:a", 6_000), Bucket("key", "key:a", 60, KEY)]
    first = check(blocks, shared, buckets)
    assert (first.tier, first.remaining, first.limit) == ("key", 59, 60)
    assert first.reset_s == pytest.approx(1)
    for _ in range(59):
        last = check(blocks, shared, buckets)
    assert (last.allowed, last.remaining) == (True, 0)
    clock.now += 0.25
    refused = check(blocks, shared, buckets)
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert refused.retry_after_s == pytest.approx(0.75)
    clock.now += refused.retry_after_s
    assert check(blocks, shared, buckets).allowed


def test_flood_does_not_reach_the_store() -> None:
    """What is known to be empty is not asked for again at once, whatever its rate."""
    for per_minute in (60, 60_000):
        clock, shared, (blocks,) = processes()
        bucket = [Bucket("client", "client:a", per_minute)]
        while check(blocks, shared, bucket).allowed:
            pass
        shared.asked = 0
        for _ in range(10_000):  # ten seconds
            clock.now += 0.001
            check(blocks, shared, bucket)
        assert shared.asked <= 101


def test_few_leases_for_many_messages() -> None:
    clock, shared, (blocks,) = processes()
    bucket = [Bucket("total", "total", 60_000)]
    for _ in range(10_000):
        clock.now += 0.002
        assert check(blocks, shared, bucket).allowed
    assert shared.asked < 60


def test_unused_tokens_go_back() -> None:
    """One that took a block and fell silent for a moment takes nothing from the others."""
    clock, shared, (blocks,) = processes()
    bucket = Bucket("key", "key:a", 60, KEY)
    for _ in range(20):
        assert check(blocks, shared, [bucket]).allowed
    held = burst_of(60) - 20 - shared.levels["key:a"][0]
    assert held > 1
    clock.now += rates.HELD_S
    assert check(blocks, shared, [bucket]).allowed
    assert shared.levels["key:a"][0] >= 60 - 20 + 2 - 2
    more = sum(check(blocks, shared, [bucket]).allowed for _ in range(100))
    assert 20 + 1 + more <= 60 + 2


def test_memory_is_bounded() -> None:
    clock, shared, (blocks,) = processes()
    blocks.at_most = 50
    for number in range(500):
        check(blocks, shared, [Bucket("client", f"client:{number}", 600)])
    assert len(blocks) == 50
    clock.now += rates.IDLE_S + 1
    check(blocks, shared, [Bucket("client", "client:new", 600)])
    assert len(blocks) == 1


def test_failures_are_refused_without_asking() -> None:
    """Also where the next token is long in coming."""
    clock, shared, (blocks,) = processes()
    limits = RateLimits(total_per_minute=0, client_per_minute=0, key_per_minute=0, failed_per_minute=6)
    bucket = limits.of_failure("192.0.2.7")
    assert blocks.refusal(bucket) is None
    for _ in range(7):
        check(blocks, shared, bucket)
    asked = shared.asked
    clock.now += 5
    refusal = blocks.refusal(bucket)
    assert refusal
    assert refusal.retry_after_s == pytest.approx(5)
    assert blocks.refusal(limits.of_failure("192.0.2.8")) is None
    clock.now += 5
    assert blocks.refusal(bucket) is None
    assert shared.asked == asked


def test_failed_logins_of_one_process() -> None:
    clock = Clock()
    failed = Allowance(6, clock)
    for _ in range(6):
        assert failed.wait_s("2001:db8::1") == 0
        failed.note("2001:db8::2")
    assert failed.wait_s("2001:db8::3") == pytest.approx(10)
    assert failed.wait_s("2001:db8:0:1::1") == 0
    clock.now += 10
    assert failed.wait_s("2001:db8::1") == 0


def test_failed_logins_under_way_at_once_all_count() -> None:
    clock = Clock()
    failed = Allowance(6, clock)
    for _ in range(9):
        failed.note("192.0.2.7")
    assert failed.wait_s("192.0.2.7") == pytest.approx(40)
    for _ in range(1_000):
        failed.note("192.0.2.7")
    assert failed.wait_s("192.0.2.7") == pytest.approx(70)


def test_failed_logins_without_a_limit() -> None:
    failed = Allowance(0, Clock())
    for _ in range(1_000):
        failed.note("192.0.2.7")
    assert failed.wait_s("192.0.2.7") == 0


def test_failed_logins_forget_the_oldest() -> None:
    failed = Allowance(1, Clock(), at_most=10)
    for number in range(100):
        failed.note(f"192.0.2.{number}")
    assert failed.wait_s("192.0.2.0") == 0
    assert failed.wait_s("192.0.2.99") > 0
    assert len(failed._levels) == 10


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # who
        st.sampled_from([1, 1, 1, 2, 10, 100]),  # how many
        st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.5, 1.1, 2.5, 30.0]),  # how long after the last
        st.integers(0, 5),  # what becomes of the answer: sometimes it comes when others have asked
    ),
    min_size=1,
    max_size=300,
)


@settings(max_examples=150, deadline=None)
@given(per_minute=st.sampled_from([1, 7, 60, 600, 60_000]), steps=STEPS)
def test_never_more_than_the_limit(per_minute: int, steps: list[tuple[int, int, float, int]]) -> None:
    """Over any interleaving of four processes: rate * t + burst."""
    clock, shared, everybody = processes(4)
    bucket = [Bucket("client", "client:a", per_minute)]
    began, taken = clock.now, 0
    late: list[tuple[Blocks, list[Ask], list[Grant]]] = []
    for who, count, pause_s, fate in steps:
        clock.now += pause_s
        blocks = everybody[who]
        decision = blocks.decide(bucket, count)
        if decision is None:
            asks = blocks.asks()
            answer = blocks, asks, shared.lease(asks)
            if fate:
                blocks.note(asks, answer[2])
                decision = blocks.decide(bucket, count)
            else:
                late.append(answer)
        elif late:
            owner, asks, grants = late.pop()
            owner.note(asks, grants)
        if decision and decision.allowed:
            taken += count
        assert taken <= per_minute / 60 * (clock.now - began) + burst_of(per_minute) + 1e-6


@pytest.mark.parametrize("per_minute", [30, 600, 60_000])
@pytest.mark.parametrize("count", [1, 4])
def test_steady_demand_gets_what_the_limit_allows(per_minute: int, count: int) -> None:
    """Demand at one and a half times the limit, spread over the processes: at least nine tenths of it are granted."""
    clock, shared, everybody = processes(count)
    bucket = [Bucket("client", "client:a", per_minute)]
    began, taken, number = clock.now, 0, 0
    while (duration_s := clock.now - began) < max(20, 12_000 / per_minute):
        clock.now += 60 / per_minute / 1.5
        number += 1
        taken += check(everybody[number % count], shared, bucket).allowed
    allowed = per_minute / 60 * duration_s + burst_of(per_minute)
    demand = number
    assert 0.9 * min(allowed, demand) <= taken <= allowed
