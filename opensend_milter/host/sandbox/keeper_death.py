"""Ends a keeper's children when the keeper is killed: the kernel forgets to do it for those that change their user."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 10.0


def start_clock(pid: int) -> int | None:
    """Return when a process was started, in the kernel's ticks; None when there is none, or a zombie."""
    try:
        # The second field, a name in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def main() -> None:
    """Read `pid clock signal` lines; the end of file is the keeper's end, however it came."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    charges: dict[int, tuple[int, int]] = {}
    for line in sys.stdin:
        pid, clock, stop_signal = map(int, line.split())
        charges[pid] = clock, stop_signal
        charges = {one: known for one, known in charges.items() if start_clock(one) == known[0]}
    _end(charges)


def _end(charges: dict[int, tuple[int, int]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    for pid, (_, number) in _living(charges).items():
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    while _living(charges) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in _living(charges):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _living(charges: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    return {pid: known for pid, known in charges.items() if start_clock(pid) == known[0]}


if __name__ == "__main__":
    main()
