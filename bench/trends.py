"""What samples of a long run say: whether memory, descriptors or connections grow. Nothing here touches a machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, median_low, quantiles

MOST_MB_PER_HOUR = 2.0
ARENA_MB = 1.048576
"""Python takes memory in pieces of this size: one more is no leak, however short the run."""
MOST_OLDEST_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has, or several together."""

    processes: int
    memory_mb: float
    """Not file pages and not Postgres's shared buffers; what is shared after a fork counts in parts."""
    descriptors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One moment."""

    at_s: float
    held: Mapping[str, Held]
    connections: Mapping[str, int]
    """Of Postgres, by role."""
    oldest_s: float
    queue: int

    @property
    def memory_mb(self) -> float:
        return sum(held.memory_mb for held in self.held.values())


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is judged."""

    what: str
    found: str
    is_good: bool

    def __str__(self) -> str:
        return f"{self.what:34} {self.found:38} {'ok' if self.is_good else 'MISSED'}"


def mb_per_hour(at_s: Sequence[float], memory_mb: Sequence[float]) -> float:
    """Lay a line through the samples by least squares; return its slope."""
    return linear_regression(at_s, memory_mb).slope * 3_600


def most_mb_per_hour(lasted_s: float) -> float:
    """Return what a process may grow by: in a short run one arena is more than the goal."""
    return max(MOST_MB_PER_HOUR, ARENA_MB / lasted_s * 3_600)


def thirds(counts: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Return beginning, middle and end."""
    size = len(counts) // 3
    return counts[:size], counts[size:-size], counts[-size:]


def goes_on_growing(counts: Sequence[int]) -> bool:
    """Tell whether a count rises from third to third, and in the end by more than it scatters.

    What is opened once and kept, as a pool does at its first peak, rises in one place only.
    """
    first, middle, last = thirds(counts)
    return median_low(first) < median_low(middle) < median_low(last) and quantiles(last)[0] > quantiles(first)[2]


def judged(samples: Sequence[Sample]) -> Iterator[Line]:
    """Judge samples in their order, first all memory, then all that is counted."""
    names = samples[0].held
    at_s = [sample.at_s for sample in samples]
    for name in names:
        memory_mb = [sample.held[name].memory_mb for sample in samples]
        processes = median_low(sample.held[name].processes for sample in samples)
        slope, most = mb_per_hour(at_s, memory_mb), processes * most_mb_per_hour(at_s[-1] - at_s[0])
        who = name if processes == 1 else f"{name} ({processes})"
        found = f"{fmean(memory_mb):7.1f} MB {slope:+8.2f} MB/h, under {most:.1f}"
        yield Line(f"{who}: memory", found, slope < most)
    for name in names:
        yield _counted(f"{name}: descriptors", [sample.held[name].descriptors for sample in samples])
    for role in sorted({role for sample in samples for role in sample.connections}):
        yield _counted(f"{role}: connections", [sample.connections.get(role, 0) for sample in samples])
    oldest_s = max(sample.oldest_s for sample in samples)
    yield Line("oldest due job", f"{oldest_s:7.1f} s, under {MOST_OLDEST_S:g}", oldest_s < MOST_OLDEST_S)


def _counted(what: str, counts: Sequence[int]) -> Line:
    parts = ", ".join(str(median_low(part)) for part in thirds(counts))
    return Line(what, f"{parts:>16}; {min(counts)} to {max(counts)}", not goes_on_growing(counts))
