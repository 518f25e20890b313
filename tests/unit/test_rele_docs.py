"""The page on http-smtp-rele shows a test for each feature, and for each weakness."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "http-smtp-rele.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| `([^`]+)::([^`]+)` \|$", re.MULTILINE)
FEATURES = 20
WEAKNESSES = 16


def test_each_row_is_shown_by_a_test_that_is_there() -> None:
    rows = ROW.findall(PAGE)
    assert [name for name, _, _ in rows[FEATURES:]] == [f"W{number}" for number in range(1, WEAKNESSES + 1)]
    for row, file, name in rows:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), row
