"""How long to wait before the next attempt: twice as long each time, capped, spread by chance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """The first pause and the longest."""

    first_s: float
    longest_s: float


LONGEST_S = 4 * 3_600.0


def pause_s(attempts: int, jitter: float, patience: Patience, asked_s: float | None = None) -> float:
    """Return how long to wait after `attempts` failures, and not less than the next hop asked for (`asked_s`).

    `jitter`, from 0 to 1, picks the upper half of the delay.
    """
    # Beyond the cap the power only grows, in the end past what a float holds.
    doublings = min(max(attempts - 1, 0), 16)
    longest_s = min(patience.first_s * (1 << doublings), patience.longest_s)
    return max(longest_s * (1 + jitter) / 2, min(asked_s or 0.0, LONGEST_S))
