"""The list of cases and the tests that carry their numbers are held to each other."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
_ROW = re.compile(r"^\| (\d+) \| (open)? ?\| (.+) \|$", re.MULTILINE)
_MARK = re.compile(r"mark\.case\((\d+)\)")


def listed() -> list[tuple[int, bool]]:
    """Return each case of the list, and whether it is open."""
    return [(int(number), bool(is_open)) for number, is_open, _ in _ROW.findall((TESTS / "cases.md").read_text())]


def marked() -> dict[int, set[str]]:
    """Return which files have a test of which case."""
    found: dict[int, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for number in _MARK.findall(path.read_text()):
            found.setdefault(int(number), set()).add(path.name)
    return found


def test_the_list_counts_from_one_and_leaves_no_number_out() -> None:
    assert [number for number, _ in listed()] == list(range(1, len(listed()) + 1))


def test_each_case_has_a_test_or_is_open_and_none_has_both() -> None:
    tested = marked()
    assert [number for number, is_open in listed() if not is_open and number not in tested] == []
    assert {number: tested[number] for number, is_open in listed() if is_open and number in tested} == {}
    assert sorted(tested.keys() - {number for number, _ in listed()}) == []
