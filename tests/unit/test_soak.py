"""What grows in a soak is told from what scatters."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import pytest

from bench.soak import Sent, became
from bench.trends import ARENA_MB, Held, Line, Sample, goes_on_growing, judged, mb_per_hour

EVERY_S = 10.0
AN_HOUR = 300
"""Samples, without those of the first ten minutes."""
FIVE_MINUTES = 27


def samples(
    memory_mb: Callable[[float], float] = lambda _: 40.0,
    *,
    number: int = AN_HOUR,
    processes: int = 1,
    oldest_s: float = 0.3,
) -> list[Sample]:
    """Return samples whose memory is a function of the hours since the first."""
    return [
        Sample(
            at_s=600 + EVERY_S * index,
            held={"serve": Held(processes, memory_mb(EVERY_S * index / 3_600), descriptors=20)},
            connections={"opensend_http": 4},
            oldest_s=oldest_s,
            queue=1,
        )
        for index in range(number)
    ]


def missed(found: Sequence[Sample]) -> list[str]:
    return [line.what for line in judged(found) if not line.is_good]


@pytest.mark.parametrize("per_hour", [-3.0, 0.0, 2.5])
def test_a_slope_is_that_of_the_line(per_hour: float) -> None:
    at_s = [EVERY_S * index for index in range(AN_HOUR)]
    assert mb_per_hour(at_s, [40 + per_hour * each / 3_600 for each in at_s]) == pytest.approx(per_hour)


@pytest.mark.parametrize("seed", range(20))
def test_memory_that_leaks_is_told_from_memory_that_scatters(seed: int) -> None:
    chance = random.Random(seed)
    assert not missed(samples(lambda _: chance.gauss(40, 0.5)))
    assert not missed(samples(lambda hours: chance.gauss(40 + hours, 0.5)))
    assert missed(samples(lambda hours: chance.gauss(40 + 3 * hours, 0.5))) == ["serve: memory"]


def test_several_together_may_grow_as_much_as_each_of_them() -> None:
    """Two megabytes an hour is the goal for a process."""
    assert not missed(samples(lambda hours: 40 + 11 * hours, processes=6))
    assert missed(samples(lambda hours: 40 + 13 * hours, processes=6)) == ["serve (6): memory"]


@pytest.mark.parametrize("number", [FIVE_MINUTES, AN_HOUR])
def test_an_arena_more_is_no_leak(number: int) -> None:
    """However short the run: a piece more in the middle of five minutes makes a steep line."""
    half = EVERY_S * number / 2 / 3_600
    assert not missed(samples(lambda hours: 40 + (hours > half) * ARENA_MB / 2, number=number))
    assert missed(samples(lambda hours: 40 + (hours > half) * ARENA_MB * 2, number=number)) == ["serve: memory"]


@pytest.mark.parametrize("number", [FIVE_MINUTES, AN_HOUR])
@pytest.mark.parametrize("seed", range(20))
def test_a_count_that_goes_on_growing_is_told_from_one_that_scatters(seed: int, number: int) -> None:
    chance = random.Random(seed)
    scattered = [20 + chance.randint(-2, 2) for _ in range(number)]
    assert not goes_on_growing(scattered)
    assert not goes_on_growing([chance.randint(0, 40) for _ in range(number)])
    assert goes_on_growing([count + 12 * index // number for index, count in enumerate(scattered)])
    assert not goes_on_growing([count - 12 * index // number for index, count in enumerate(scattered)])


def test_one_more_now_and_then_is_growth_however_slow() -> None:
    assert goes_on_growing([10] * 80 + [11] * 80 + [12] * 80 + [13] * 60)


@pytest.mark.parametrize("opened_at", range(0, AN_HOUR, 10))
def test_what_is_opened_once_and_kept_is_no_growth(opened_at: int) -> None:
    assert not goes_on_growing([10] * opened_at + [13] * (AN_HOUR - opened_at))


def test_a_count_that_rises_and_falls_is_no_growth() -> None:
    """As smtpd's processes do: each serves a hundred connections."""
    assert not goes_on_growing([10 + index % 7 for index in range(AN_HOUR)])


def test_descriptors_and_connections_are_judged_each_by_itself() -> None:
    found = [
        dataclasses.replace(
            one,
            held={"serve": Held(1, 40.0, 20), "http": Held(1, 40.0, 20 + index // 50)},
            connections={"opensend_http": 4, "opensend_worker": 3 + index // 50},
        )
        for index, one in enumerate(samples())
    ]
    assert missed(found) == ["http: descriptors", "opensend_worker: connections"]


def test_a_role_that_connects_later_is_judged_too() -> None:
    found = samples()
    found[-1] = dataclasses.replace(found[-1], connections={"opensend_worker": 1})
    assert "opensend_worker: connections" in [line.what for line in judged(found)]


@pytest.mark.parametrize(("oldest_s", "expected"), [(4.9, []), (5.0, ["oldest due job"])])
def test_a_job_may_be_due_for_less_than_five_seconds(oldest_s: float, expected: list[str]) -> None:
    assert missed(samples(oldest_s=oldest_s)) == expected


@pytest.mark.parametrize(
    ("sent", "copies", "expected"),
    [
        ([Sent(2, {}), Sent(1, {})], {b"a-0": 1, b"a-1": 1, b"b-0": 1}, []),
        ([Sent(3, {})], {b"a-0": 1, b"a-1": 1}, ["accepted and delivered"]),
        ([Sent(2, {})], {b"a-0": 2, b"a-1": 1}, ["delivered again"]),
        ([Sent(2, {"data: 451": 3})], {b"a-0": 1, b"a-1": 1}, ["not taken"]),
    ],
)
def test_every_accepted_message_is_delivered_once(
    sent: list[Sent], copies: dict[bytes, int], expected: list[str]
) -> None:
    assert [line.what for line in became(sent, copies) if not line.is_good] == expected


def test_a_line_fits_a_terminal() -> None:
    lines = [*judged(samples(lambda _: 9_999.0, processes=120)), Line("x" * 34, "y" * 38, is_good=False)]
    assert max(len(str(line)) for line in lines) <= 80
