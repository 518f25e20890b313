"""What is measured once, what that makes of several rounds, and nothing that touches a machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One load on one system, once."""

    messages: int
    seconds: float
    p50_ms: float
    p99_ms: float
    """From the last byte of a message to its 250."""
    cpu_ms: Mapping[str, float]
    """Per message, by process group."""
    errors: Mapping[str, int]
    memory_mb: float = 0.0
    """The most that serve held, where it was watched."""

    @property
    def per_s(self) -> float:
        return self.messages / self.seconds if self.seconds else 0.0

    def cpu_of(self, *groups: str) -> float:
        return sum(self.cpu_ms.get(group, 0.0) for group in groups)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, and how far they lie apart."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def spread(values: Iterable[float]) -> Spread | None:
    """Return None where nothing was measured."""
    known = [value for value in values if math.isfinite(value)]
    return Spread(median(known), min(known), max(known)) if known else None


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """Divide round by round: what slows the machine for a while hits both."""
    return spread(mine / other for mine, other in zip(ours, theirs, strict=True) if other)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of all does not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def together(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up errors by their kind."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004  # three digits say enough
