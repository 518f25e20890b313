"""When to try again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from opensend_milter.core.backoff import FIRST_S, LONGEST_S, next_attempt_at

NOW = datetime(2025, 8, 20, 12, tzinfo=UTC)


def delay(attempts: int, jitter: float) -> timedelta:
    return next_attempt_at(attempts, NOW, jitter) - NOW


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(1, 60), (2, 120), (3, 240), (8, 7_680), (9, 14_400), (12, 14_400), (5_000, 14_400)]
)
def test_each_delay_is_twice_the_last_up_to_a_cap(attempts: int, seconds: int) -> None:
    """With the greatest jitter the delay is whole."""
    assert delay(attempts, 1.0) == timedelta(seconds=seconds)


@pytest.mark.parametrize("attempts", [1, 5, 12])
def test_jitter_takes_away_up_to_a_half(attempts: int) -> None:
    """Messages that failed together do not come back together."""
    assert delay(attempts, 0.0) == delay(attempts, 1.0) / 2
    assert delay(attempts, 0.0) < delay(attempts, 0.3) < delay(attempts, 0.6) < delay(attempts, 1.0)


def test_never_at_once_and_never_beyond_the_cap() -> None:
    """Not even for a number of attempts that cannot be."""
    assert delay(0, 0.0) >= timedelta(seconds=FIRST_S / 2)
    assert all(delay(n, 1.0) <= timedelta(seconds=LONGEST_S) for n in range(100))
