"""How long to wait."""

from __future__ import annotations

import pytest

from opensend_milter.core.backoff import LONGEST_S, pause_s
from opensend_milter.core.couriers import COURIERS

SMTP = COURIERS["smtp"].patience


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(1, 60), (2, 120), (3, 240), (8, 7_680), (9, 14_400), (12, 14_400), (5_000, 14_400)]
)
def test_each_delay_is_twice_the_last_up_to_a_cap(attempts: int, seconds: int) -> None:
    """With the greatest jitter the delay is whole."""
    assert pause_s(attempts, 1.0, SMTP) == seconds


@pytest.mark.parametrize("attempts", [1, 5, 12])
def test_jitter_takes_away_up_to_a_half(attempts: int) -> None:
    """Messages that failed together do not come back together."""
    shortest, longest = pause_s(attempts, 0.0, SMTP), pause_s(attempts, 1.0, SMTP)
    assert shortest == longest / 2
    assert shortest < pause_s(attempts, 0.3, SMTP) < pause_s(attempts, 0.6, SMTP) < longest


def test_never_at_once_and_never_beyond_the_cap() -> None:
    """Not even for a number of attempts that cannot be."""
    for patience in (row.patience for row in COURIERS.values()):
        assert pause_s(0, 0.0, patience) >= patience.first_s / 2 >= 5
        assert all(pause_s(n, 1.0, patience, asked_s=10**9) <= LONGEST_S for n in range(100))


def test_the_next_hop_may_ask_for_more_and_not_for_less() -> None:
    assert pause_s(1, 1.0, SMTP, asked_s=300.0) == 300
    assert pause_s(1, 1.0, SMTP, asked_s=1.0) == 60
