"""The threat model of docs/security.md: each boundary, and no row without tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
SECTION = PAGE.partition("## Threat model\n")[2].partition("\n## ")[0]
BOUNDARIES = (
    "From the network, without a key",
    "A key holder",
    "Another tenant",
    "Another unix user on the host",
    "A process of ours that was taken over",
    "A database role that was stolen",
    "The next hop, and whoever answers a message",
    "A webhook's receiver",
    "Amazon, and whoever says so",
)


def rows(section: str) -> list[str]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| tried |", "| which |", "|---"))]


def named_in(row: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", row.rstrip("| ").rpartition("|")[2])


def test_each_boundary_is_there() -> None:
    assert re.findall(r"^### (.+)$", SECTION, re.MULTILINE) == list(BOUNDARIES)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_no_row_is_without_a_test(boundary: str) -> None:
    found = rows(SECTION.partition(f"### {boundary}\n")[2].partition("\n### ")[0])
    assert found
    assert not [row for row in found if not named_in(row)]


def test_each_test_that_is_named_is_there() -> None:
    sources = [path.read_text() for path in TESTS.rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", SECTION))
    assert named
    assert not named - there
