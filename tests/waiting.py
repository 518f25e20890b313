"""Waiting for a condition: patient, so that a busy machine is no failure, and with a word for what was waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
PATIENCE_S = 60.0
"""Of a machine that has its cores to itself."""
PAUSE_S = 0.01


def patience_s() -> float:
    """Return how long to wait for something that is about to happen: longer where others are at work, too."""
    return PATIENCE_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def await_true(condition: Callable[[], object], what: str, *, pause_s: float = PAUSE_S) -> None:
    """Wait until it is true; say what was not."""
    await_found(lambda: condition() or None, what, pause_s=pause_s)


def await_found(find: Callable[[], Found | None], what: str, *, pause_s: float = PAUSE_S) -> Found:
    """Wait until something is found, and return it; say what was not."""
    began = time.monotonic()
    while (found := find()) is None:
        if time.monotonic() - began > patience_s():
            raise AssertionError(f"not within {time.monotonic() - began:.0f} s: {what}")
        time.sleep(pause_s)
    return found
