"""What pairs of measurements say about a bound, and nothing that touches a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

LEAST_PAIRS, MOST_PAIRS = 12, 60
Verdict = Literal["kept", "not kept", "undecided", "go on"]
# Student's t, 95 % on two sides, for 1, 2, 3 and more degrees of freedom.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    2.040, 2.037, 2.035, 2.032, 2.030, 2.028, 2.026, 2.024, 2.023, 2.021,
    2.020, 2.018, 2.017, 2.015, 2.014, 2.013, 2.012, 2.011, 2.010, 2.009,
    2.008, 2.007, 2.006, 2.005, 2.004, 2.003, 2.002, 2.002, 2.001,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio, and where it lies with 95 % confidence."""

    ratio: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio must reach, or where less is better must not exceed."""

    limit: float
    more_is_better: bool = True


def t_95(freedom: int) -> float:
    """Return Student's t; beyond the table its last value, which makes an interval too wide, never too narrow."""
    return _T_95[min(freedom, len(_T_95)) - 1]


def interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Return the geometric mean of the ratios within each pair; None where there are no two pairs, or a figure is 0.

    By logarithms, so that it does not matter which of the two is divided by the other.
    """
    if len(ours) < 2 or min(*ours, *theirs) <= 0:  # noqa: PLR2004  # one pair has no deviation
        return None
    logs = [math.log(mine / other) for mine, other in zip(ours, theirs, strict=True)]
    middle = fmean(logs)
    reach = t_95(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach), len(logs))


def decide(found: Interval | None, bound: Bound, *, pairs: int, most: int = MOST_PAIRS) -> Verdict:
    """Say yes or no as soon as the whole interval lies on one side of the bound."""
    if found and pairs >= LEAST_PAIRS:
        worst, best = (found.low, found.high) if bound.more_is_better else (1 / found.high, 1 / found.low)
        limit = bound.limit if bound.more_is_better else 1 / bound.limit
        if worst >= limit:
            return "kept"
        if best < limit:
            return "not kept"
    return "undecided" if pairs >= most else "go on"
