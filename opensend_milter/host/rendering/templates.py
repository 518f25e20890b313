"""The configuration files we ship: plain text with named values, rendered or refused, never half right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from opensend_milter.core.errors import ConfigError

Value = str | int | Path | None
"""None: the thing is off, and the entry that names it is left out."""

_NAME = re.compile(r"@([A-Z][A-Z0-9_]*)@")
# What neither Postfix nor Dovecot reads as anything but itself; no white space, so that no value becomes two.
_PLAIN = re.compile(r"[\w./:\[\]+=%~-]+", re.ASCII)
_PACKAGE = Path(__file__).resolve().parents[2]


def checkout() -> Path | None:
    """Return the source checkout that this package runs from, if it does."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "postfix" / "main.cf.in").is_file() else None


def read(folder: Literal["postfix", "dovecot"], name: str) -> str:
    """Return a template: of the checkout, or as installed in the package."""
    return ((checkout() or _PACKAGE / "share") / folder / name).read_text(encoding="utf-8")


def render(template: str, values: Mapping[str, Value], *, trusted: frozenset[str] = frozenset()) -> str:
    """Put values in place of `@NAME@`; raise ConfigError for a value that cannot be written.

    A name without a value, or a value without a name, is a fault of ours: KeyError. The values named in `trusted`
    were quoted by the caller and may hold more than plain characters.
    """
    unused = set(values) - set(_NAME.findall(template))
    if unused:
        raise KeyError(f"not in the template: {', '.join(sorted(unused))}")
    texts = {
        name: value if name in trusted else _plain(name, value) for name, value in values.items() if value is not None
    }
    off = {name for name, value in values.items() if value is None}

    def put(match: re.Match[str]) -> str:
        return str(texts[match[1]])

    return "".join(_NAME.sub(put, entry) for entry in _entries(template) if off.isdisjoint(_NAME.findall(entry)))


def _plain(name: str, value: str | int | Path) -> str:
    text = str(value)
    if not _PLAIN.fullmatch(text):
        raise ConfigError(f"{name.lower()}: cannot be written into a configuration file: {text!r}")
    return text


def _entries(template: str) -> Iterator[str]:
    """Split into logical lines: one that begins with white space continues the one before."""
    entry = ""
    for line in template.splitlines(keepends=True):
        if entry and not line.startswith((" ", "\t")):
            yield entry
            entry = ""
        entry += line
    yield entry
