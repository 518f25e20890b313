"""Modules that are named by a string are there: no checker follows such a name when a module moves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "opensend_milter"
_DOTTED = re.compile(r"opensend_milter(?:\.[a-z_0-9]+)+")
_QUOTED = re.compile(rf"""["']{_DOTTED.pattern}["']""")
"""Few files have one, and to parse them all takes seconds, in each process that collects tests."""
_FILES = [*PACKAGE.rglob("*.py"), *(ROOT / "bench").glob("*.py"), *(ROOT / "packaging").rglob("*.py"),
          *(ROOT / "tests").rglob("*.py")]  # fmt: skip
_ROOMS = "opensend_milter|adapters|app|cli|config|core|host|servers"
_PLACES = re.compile(rf"(?<![\w/.-])((?:{_ROOMS})/[\w/]+\.(?:py|sql|tsv))\b")
_OF_THE_DATABASE = {"opensend_milter.mail", "opensend_milter.rights"}
"""A logger, and a table that no .sql file names."""


def strings(path: Path) -> Iterator[str]:
    """Yield each string of a file that is one dotted name."""
    text = path.read_text()
    if not _QUOTED.search(text):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            yield node.value


def modules_named() -> set[str]:
    found = {name for path in _FILES for name in strings(path)}
    tables = {match for path in PACKAGE.rglob("*.sql") for match in _DOTTED.findall(path.read_text())}
    return found - tables - _OF_THE_DATABASE


def test_a_module_that_a_string_names_can_be_imported() -> None:
    named = modules_named()
    assert named
    assert sorted(name for name in named if not is_there(name)) == []


def is_there(name: str) -> bool:
    """Tell whether it is a module, or stands in one."""
    place, _, attribute = name.rpartition(".")
    with suppress(ModuleNotFoundError):
        import_module(name)
        return True
    with suppress(ModuleNotFoundError):
        return hasattr(import_module(place), attribute)
    return False


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_a_place_that_a_page_names_is_there(page: Path) -> None:
    named = set(_PLACES.findall(page.read_text()))
    gone = sorted(one for one in named if not (ROOT / one).exists() and not (PACKAGE / one).exists())
    assert gone == [] or page.name == "CHANGELOG.md", gone
