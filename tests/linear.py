"""Counting lines of ours that run, in place of timing them: an idle machine and a busy one come to the same number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import opensend_milter

TIMES = 4
LEEWAY = 1.1
"""A size that is rounded, a buffer that is begun: what is quadratic is far beyond it."""
_OURS = str(Path(opensend_milter.__file__).parent)


def lines_run(work: Callable[[], object]) -> int:
    """Return how many lines of the package's Python it takes, loops counted each time around."""
    lines = 0

    def count(_frame: FrameType, event: str, _about: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    def enter(frame: FrameType, _event: str, _about: Any) -> Any:
        return count if frame.f_code.co_filename.startswith(_OURS) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Let it do so much, and four times as much: that takes four times as many lines, or fewer.

    What `re` and its like do in C is not seen: give them, in the same test, so much that only what is linear ends.
    """
    work(size)  # what is done but once is done now
    few, many = (lines_run(partial(work, each)) for each in (size, TIMES * size))
    assert few > 0, "nothing of ours has run"
    assert many <= TIMES * few * LEEWAY, f"{few} lines for {size}, {many} for {TIMES * size}"
