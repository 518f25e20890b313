"""How much memory the children of a process held at the most, by the system's own count (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FORGET_THE_PEAK = "5"
_KB_A_MB = 1_024


@dataclass(frozen=True, slots=True)
class Peaks:
    """The children that a process has; what they held before does not count."""

    parent: int
    children: tuple[int, ...]

    @classmethod
    def from_now(cls, parent: int) -> Self:
        """Begin to count."""
        children = _children(parent)
        for child in children:
            Path(f"/proc/{child}/clear_refs").write_text(_FORGET_THE_PEAK)
        return cls(parent, children)

    def mb(self) -> int:
        """Return what the largest of them held; none may have died meanwhile."""
        assert _children(self.parent) == self.children, "a child died"
        return max(map(_peak_mb, self.children))


def _children(pid: int) -> tuple[int, ...]:
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _peak_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) // _KB_A_MB
