"""Whether the machine had anything else to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MOST_LOAD, MOST_STEAL_PERCENT = 0.5, 2.0
_STEAL = 7
# Those of guests, which come after it, are in user and nice already.
_FIELDS = 8


@dataclass(frozen=True, slots=True)
class Times:
    """What all processors together have spent since the machine was started, in ticks."""

    all: int
    stolen: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """How busy it was before, and how much of it another machine had meanwhile."""

    load_before: float
    steal_percent: float

    @property
    def faults(self) -> list[str]:
        """Return what makes the figures doubtful."""
        found = []
        if self.load_before > MOST_LOAD:
            found.append(f"load {self.load_before:.2f} before, over {MOST_LOAD:g}")
        if self.steal_percent > MOST_STEAL_PERCENT:
            found.append(f"steal {self.steal_percent:.1f} % meanwhile, over {MOST_STEAL_PERCENT:g} %")
        return found


def times(stat: str) -> Times:
    """Read the first line of /proc/stat."""
    fields = [int(field) for field in stat.splitlines()[0].split()[1 : _FIELDS + 1]]
    return Times(sum(fields), fields[_STEAL])


def steal_percent(before: Times, after: Times) -> float:
    passed = after.all - before.all
    return 100 * (after.stolen - before.stolen) / passed if passed else 0.0


@dataclass(frozen=True, slots=True)
class Watcher:
    """Begins before anything is started."""

    load_before: float
    before: Times

    @classmethod
    def begin(cls) -> Watcher:
        return cls(os.getloadavg()[0], _now())

    def end(self) -> Quiet:
        return Quiet(round(self.load_before, 2), round(steal_percent(self.before, _now()), 2))


def _now() -> Times:
    return times(Path("/proc/stat").read_text())
