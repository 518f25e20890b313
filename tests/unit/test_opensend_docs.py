"""The page on OpenSend shows a test for each weakness of its relay."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "opensend.md"


def test_each_weakness_is_answered_by_a_test_that_is_there() -> None:
    rows = re.findall(r"^\| W(\d+) \|.*\| `([^`]+)::([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 32))
    for number, file, name in rows:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), number
