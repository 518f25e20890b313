"""Waiting for a condition: patient, so that a busy machine is no failure, and with a word for what was waited for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
What = str | Callable[[], object]
"""What is waited for; or what to say once it was waited for in vain."""
PATIENCE_S = 60.0
"""Of a machine that has its cores to itself."""
NEVER_S = 3_600.0
"""For a time-out that is not to be reached: whoever sits it out is stopped by the test's own."""
PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.2
SHARE_OF_PAUSE = 0.1
"""Whoever has waited for a while asks less often: many a question costs a connection to a database."""
MOST_SLOWNESS = 8.0
"""What is slower still has stopped."""
_LOAD = Path("/proc/loadavg")


def slowness() -> float:
    """Return how many times as long things take here: as many as want a core, in the last minute or now."""
    last_minute, _, _, now = _LOAD.read_text().split()[:4]
    wanted = max(float(last_minute), float(now.partition("/")[0])) / (os.cpu_count() or 1)
    return min(max(1.0, wanted), MOST_SLOWNESS)


def patience_s() -> float:
    """Return how long to wait for something that is about to happen: longer where others are at work, too."""
    return scaled_s(PATIENCE_S)


def scaled_s(seconds: float) -> float:
    """Return what comes to so many seconds where others are at work: for what a test has to sit out."""
    return seconds * slowness()


def await_true(condition: Callable[[], object], what: What, *, pause_s: float = PAUSE_S) -> None:
    """Wait until it is true; say what was not."""
    await_found(lambda: condition() or None, what, pause_s=pause_s)


def await_found(find: Callable[[], Found | None], what: What, *, pause_s: float = PAUSE_S) -> Found:
    """Wait until something is found, and return it; say what was not."""
    began = time.monotonic()
    while (found := find()) is None:
        waited_s = time.monotonic() - began
        if waited_s > patience_s():
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {waited_s:.0f} s: {told}")
        time.sleep(max(pause_s, min(waited_s * SHARE_OF_PAUSE, LONGEST_PAUSE_S)))
    return found


def await_of(process: subprocess.Popen[bytes], condition: Callable[[], object], log: Callable[[], object]) -> None:
    """Wait until it is true of a process of ours; show its log where that has ended before, or waits for ever."""

    def is_true() -> object:
        assert process.poll() is None, log()
        return condition()

    await_true(is_true, log)
