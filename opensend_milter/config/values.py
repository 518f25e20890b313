"""How a value is read from text, and how it is shown: never with a password in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import unquote

MASK = "********"
SHOWN_CHARACTERS = 80

Value = bool | int | float | str | Path | None

# The atomic prefix keeps `scheme:` from being taken for a user; a password may hold any character, also `@`.
_CREDENTIALS = re.compile(r"^((?>(?:[a-z0-9+.-]*:?//)?)[^:?#@]*):(.*)@", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r"(?<=[?&])([^=&?]*)=([^&]*)")
_WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class ValueKind:
    """One type of value."""

    expected: str
    yaml_types: frozenset[str]
    """What YAML may take the value for: a quoted number is text."""
    parse: Callable[[str], Value]
    """Raises ValueError."""


def kind_of(hint: Any) -> ValueKind:
    """Return how values of an annotation are read."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return ValueKind(f"one of {', '.join(choices)}", frozenset({"str"}), lambda text: _choice(text, choices))
    if get_origin(hint) is UnionType:
        (inner,) = (kind_of(part) for part in get_args(hint) if part is not type(None))
        return ValueKind(inner.expected, inner.yaml_types | {"null"}, inner.parse)
    return _KINDS[hint]


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(text)
    return text


def _bool(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError(text)
    return _WORDS[text.lower()]


def _int(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _float(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _text(text: str) -> str:
    # A line break or a NUL would end up in files that we render.
    if not text.isprintable():
        raise ValueError(text)
    return text


_KINDS: dict[object, ValueKind] = {
    bool: ValueKind("true or false", frozenset({"bool"}), _bool),
    int: ValueKind("a whole number", frozenset({"int"}), _int),
    float: ValueKind("a number", frozenset({"int", "float"}), _float),
    str: ValueKind("text", frozenset({"str"}), _text),
    Path: ValueKind("a path", frozenset({"str"}), lambda text: Path(_text(text))),
}


def mask(text: str) -> str:
    """Hide the passwords of a URL, also of one that is not well-formed."""
    hidden = _CREDENTIALS.sub(rf"\1:{MASK}@", text)
    return _PARAMETER.sub(_mask_parameter, hidden)


def _mask_parameter(match: re.Match[str]) -> str:
    name = unquote(match[1]).lower()
    return f"{match[1]}={MASK}" if name.endswith(("password", "secret", "token")) else match[0]


def shown(text: str, *, secret: bool = False) -> str:
    """Quote what was given, for an error text: one line, of bounded length."""
    text = MASK if secret else mask(text)
    if len(text) <= SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:SHOWN_CHARACTERS] + '...'!r} ({len(text.encode(errors='surrogatepass'))} bytes)"
