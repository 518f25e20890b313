"""Counting lines: what is linear passes, what is not is seen, and nothing but the package counts."""

from __future__ import annotations

import sys

import pytest

from opensend_milter.core.fields import shown
from tests.linear import assert_linear, lines_run


def test_lines_of_ours_are_counted_and_no_others() -> None:
    once = lines_run(lambda: shown("a"))
    assert once > 0
    assert lines_run(lambda: [shown("a") for _ in range(5)]) == 5 * once
    assert lines_run(lambda: sorted(range(100), key=lambda number: -number)) == 0


def test_what_grows_faster_than_its_input_is_seen() -> None:
    assert_linear(lambda size: [shown("a") for _ in range(size)], 10)
    assert_linear(lambda _: shown("a"), 10)
    with pytest.raises(AssertionError, match=r"lines for 10, \d+ for 40"):
        assert_linear(lambda size: [shown("a") for _ in range(size * size)], 10)
    with pytest.raises(AssertionError, match="nothing of ours"):
        assert_linear(lambda size: [0] * size, 10)


def test_whoever_traced_before_goes_on() -> None:
    """A debugger, or what measures coverage."""
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        lines_run(lambda: 1 // 0)
    assert sys.gettrace() is before
