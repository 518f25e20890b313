"""Processor time and memory of process groups, as /proc has them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MB = 1_000_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
Groups = Mapping[str, tuple[int, ...]]
"""Names, and the pids that each group's processes descend from."""


def children(pid: int) -> list[int]:
    """Return the pids of a process's children, whichever of its threads made them."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except _GONE:
        return []


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it, parents first."""
    return [pid, *(each for child in children(pid) for each in tree(child))]


def cpu_s(pid: int) -> float:
    """Return user and system time of a process and of all that descended from it, also of those that have ended."""
    total = 0
    for each in tree(pid):
        try:
            # The second field, a name in parentheses, may hold spaces.
            row = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except _GONE:
            continue
        total += sum(int(field) for field in row[11:15])
    return total / _TICKS_PER_S


def cpu_by_group(groups: Groups) -> dict[str, float]:
    """Return what each group has used so far."""
    return {name: sum(cpu_s(pid) for pid in pids) for name, pids in groups.items()}


def since(before: Mapping[str, float], after: Mapping[str, float], messages: int) -> dict[str, float]:
    """Return milliseconds per message."""
    return {name: (after[name] - before[name]) * 1_000 / messages if messages else 0.0 for name in after}


def memory_bytes(pids: Iterable[int]) -> int:
    """Return what processes hold together; pages that they share count once (PSS)."""
    return sum(_pss_bytes(pid) for pid in pids)


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except _GONE:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


@dataclass(eq=False)
class Watch(threading.Thread):
    """Notes the most that a process and its descendants hold while it runs."""

    pid: int
    peak_bytes: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(tree(self.pid)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
