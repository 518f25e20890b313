"""docs/dependencies.md counts what is in the lock, and what each library brings."""

from __future__ import annotations

import json
import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
LOCKED = {
    canonicalize_name(name): version
    for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
}
NODE = json.loads((ROOT / "tests/node/package-lock.json").read_text(encoding="utf-8"))["packages"]
ROWS = re.findall(r"(?m)^\| ([\w.-]+(?:\[[\w,]+\])?) ([\d.]+) \| .*? \| (\d+) \| [\d.]+ \|", PAGE)


def brought(wanted: str) -> set[str]:
    """Return the library and all that comes with it here."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(wanted)]
    while waiting:
        one = waiting.pop()
        if (one.name, frozenset(one.extras)) in found:
            continue
        found.add((one.name, frozenset(one.extras)))
        for further in map(Requirement, requires(one.name) or ()):
            extras = {"", *one.extras}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return {canonicalize_name(name) for name, _ in found}


@pytest.mark.parametrize(("library", "version", "count"), ROWS, ids=[name for name, *_ in ROWS])
def test_a_library_is_as_the_page_says(library: str, version: str, count: str) -> None:
    assert LOCKED[canonicalize_name(Requirement(library).name)] == version
    assert len(brought(library)) - 1 == int(count)


def test_no_library_of_ours_is_left_out() -> None:
    declared = [Requirement(text) for text in requires("opensend-milter") or ()]
    listed = {canonicalize_name(Requirement(name).name) for name, *_ in ROWS}
    assert {canonicalize_name(one.name) for one in declared} <= listed
    runtime = [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]
    needed = set[str]().union(*(brought(str(one).partition(";")[0]) for one in runtime))
    assert f"of all of them, {len(LOCKED)} packages," in PAGE
    assert f"libraries only: {len(runtime)}, and with\nwhat they bring {len(needed)} packages." in PAGE


def test_packages_of_node_are_as_the_page_says() -> None:
    """And the lock says what they are, not where they come from."""
    needed = NODE.pop("")["dependencies"]
    listed = dict(re.findall(r"(?m)^\| `([\w.-]+)` ([\d.]+) \|", PAGE))
    assert listed == needed == {name: NODE[f"node_modules/{name}"]["version"] for name in needed}
    assert f"hashes of all {len(NODE)} are in `tests/node/package-lock.json`" in PAGE
    assert [name for name, one in NODE.items() if "resolved" in one or not one["integrity"].startswith("sha512-")] == []
