"""When to try again: twice as late each time, capped, spread by chance."""

from __future__ import annotations

from datetime import datetime, timedelta

FIRST_S = 60.0
LONGEST_S = 4 * 3_600.0


def next_attempt_at(attempts: int, now: datetime, jitter: float) -> datetime:
    """Return when to try again after `attempts` failures; `jitter`, from 0 to 1, picks the upper half of the delay."""
    # Beyond the cap the power only grows, in the end past what a float holds.
    doublings = min(max(attempts - 1, 0), 16)
    longest_s = min(FIRST_S * 2**doublings, LONGEST_S)
    return now + timedelta(seconds=longest_s * (1 + jitter) / 2)
