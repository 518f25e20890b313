"""The pages that list every option say what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import textwrap
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from opensend_milter.config import KEYS, Config, Key, load

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "opensend-milter.example.yaml"
PAGE = DOCS / "configuration.md"
WRITE = "UPDATE_DOCS"
HOW = f"the page is not what the code says; write it anew: {WRITE}=1 pytest {Path(__file__).name}"

HEAD = """\
# opensend-milter: every key with its default. All of them may be left out; take the # away from what you change.
# `opensend-milter check-config` says whether the file is right. Passwords do not belong here: docs/configuration.md.
"""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _default(key: Key) -> str:
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return "none" if key.default is None else str(key.default) or "empty"


def _commented(text: str, indent: str) -> str:
    return textwrap.fill(
        text, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _entry(key: Key) -> list[str]:
    indent = "  " if key.section else ""
    env = f" (environment: {key.option.env})" if key.option.env else ""
    value = str(key.default) if isinstance(key.default, Path) else key.default
    return [
        _commented(_sentence(key.option.help), indent),
        f"{indent}# Default: {_default(key)}{env}",
        f"{indent}#" + yaml.safe_dump({key.name: value}, width=1_000).rstrip(),
    ]


def example() -> str:
    """Render the example file."""
    blocks = [HEAD]
    for section, keys in groupby(KEYS, key=attrgetter("section")):
        lines = [line for key in keys for line in _entry(key)]
        if section:
            about = inspect.getdoc(type(getattr(Config(), section))) or ""
            lines = [_commented(about, ""), f"{section}:", *lines]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def table() -> str:
    """Render the table of all keys."""
    rows = ["| key | what | values | default | short variable | |", "|---|---|---|---|---|---|"]
    for key in KEYS:
        env = f"`{key.option.env}`" if key.option.env else ""
        again = "again" if key.option.renders else ""
        default = f"`{_default(key)}`" if _default(key) not in {"none", "empty"} else _default(key)
        what = _sentence(key.option.help).removesuffix(".")
        rows.append(f"| `{key.path}` | {what} | {key.expected} | {default} | {env} | {again} |")
    return "\n".join(rows) + "\n"


def _written(path: Path, wanted: str) -> str:
    if os.environ.get(WRITE):
        path.write_text(wanted, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def test_the_example_is_what_the_code_says() -> None:
    """Nobody has to remember the example when an option changes."""
    wanted = example()
    assert _written(EXAMPLE, wanted) == wanted, HOW


def test_the_table_is_what_the_code_says() -> None:
    """Nobody has to remember the table when an option changes."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index("<!-- options -->\n") + len("<!-- options -->\n"), page.index("<!-- /options -->")
    wanted = page[:start] + table() + page[end:]
    assert _written(PAGE, wanted) == wanted, HOW


def test_the_example_loads() -> None:
    """The file as shipped is a right one."""
    assert load(EXAMPLE, {}) == Config()


def test_the_example_has_every_option_with_its_default(tmp_path: Path) -> None:
    """Taking every # away changes nothing."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count("# Default: ") == len(KEYS)
    everything = tmp_path / "all.yaml"
    everything.write_text(re.sub(r"^( *)#(?! )", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    tree = yaml.safe_load(everything.read_text(encoding="utf-8"))
    paths = {f"{name}.{key}" for name, keys in tree.items() if isinstance(keys, dict) for key in keys}
    paths |= {name for name, value in tree.items() if not isinstance(value, dict)}
    assert paths == {key.path for key in KEYS}
    assert load(everything, {}) == Config()


def test_the_page_maps_every_variable_of_the_seeds() -> None:
    """Whoever comes from OpenSend or Plunk finds each name that is read."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:OpenSend|Plunk) \| `([a-z_.]+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((key.option.env, key.path) for key in KEYS if key.option.env)


@pytest.mark.parametrize("key", KEYS, ids=attrgetter("path"))
def test_a_key_is_documented_once(key: Key) -> None:
    """Help is a phrase that fits a table's cell."""
    assert key.option.help
    assert "|" not in key.option.help
    assert not key.option.help.endswith(".")


def test_every_field_is_an_option() -> None:
    """A field without help, check and source would slip past all pages."""
    sections = [one for one in dataclasses.fields(Config) if dataclasses.is_dataclass(getattr(Config(), one.name))]
    fields = sum(len(dataclasses.fields(getattr(Config(), one.name))) for one in sections)
    assert len(KEYS) == fields + len(dataclasses.fields(Config)) - len(sections)
