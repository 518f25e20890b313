"""Texts on a terminal: whole where there is room, cut where there is none, and never more work than letters."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from opensend_milter.cli.output import broken

HOSTILE = ["x" * 10_000, "e" + "\u0301" * 10_000, "ﷺ" * 10_000, "📦 " * 5_000, " " * 10_000, ""]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:2])
@pytest.mark.parametrize("width", [1, 2, 20, 80])
def test_a_text_takes_as_many_lines_as_it_may_and_no_more(text: str, width: int) -> None:
    lines = broken(text, width, 3)
    assert 1 <= len(lines) <= 3
    assert max(map(cell_len, lines)) <= max(width, 2)


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=200), st.integers(10, 80))
def test_what_fits_is_all_there(text: str, width: int) -> None:
    whole = "".join(broken(text, width, 1_000))
    assert whole.replace(" ", "") == text.replace(" ", "")


def test_in_a_file_nothing_is_broken() -> None:
    assert broken("x" * 10_000, None, 3) == ["x" * 10_000]
