"""Strict JSON: what readers would differ about is refused, and so is what would take up many times its size."""

from __future__ import annotations

import json
import re
from collections import Counter

from opensend_milter.core.fields import FieldError, shown

MOST_VALUES = 500_000
"""A bulk of 100 messages that fills each of its fields has 150,000; each takes up 300 octets at the most."""
_DEPTH = 32
_STRING_OR_NUMBERS = re.compile(rb'"[^"]*+"|\[\s*+([0-9][0-9,\s]{256,}+)\]')
"""Where no quote is escaped. A list of numbers is most likely a file."""
_PIECE_OCTETS = 262_144
_PLACE = "NaN"
"""Stands for a list of octets: JSON itself has none, and the parser asks what it is to be."""


class _NotJsonError(ValueError):
    pass


class _TooManyError(ValueError):
    pass


def parse_json(body: bytes | bytearray) -> object:
    """Read JSON; return a FieldError where it is none, or too much. A long list of octets may come as bytes."""
    try:
        found = _parsed(body)
        _refuse_depth(found)
    except UnicodeDecodeError:
        return FieldError(field="", message="the body is not UTF-8", code="invalid")
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        return FieldError(field="", message=message, code="invalid")
    except RecursionError:
        return FieldError(field="", message=f"the body is nested more than {_DEPTH} deep", code="invalid")
    except _TooManyError:
        return FieldError(field="", message=f"the body holds more than {MOST_VALUES} values", code="too_many")
    except ValueError as error:  # of ours, or a number of thousands of digits
        message = str(error) if isinstance(error, _NotJsonError) else "the body holds a number that is too long"
        return FieldError(field="", message=message, code="invalid")
    return found


def _parsed(body: bytes | bytearray) -> object:
    # What is shorter cannot have more values.
    body, octets = _apart(body) if len(body) > MOST_VALUES else (body, [])
    left = iter(octets)

    def constant(name: str) -> object:
        if name == _PLACE and octets:
            return next(left)
        raise _NotJsonError(f"the body is not JSON: {name} is no number there")

    return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=constant)


def _apart(body: bytes | bytearray) -> tuple[bytes | bytearray, list[bytes]]:
    """Take out what are lists of octets, a `NaN` in the place of each; raise where too much is left.

    In the parser's hands each octet is an object, all of them are made in one go, and nobody else runs meanwhile.
    """
    quiet = body.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    if quiet.count(b'"') > 4 * MOST_VALUES:
        raise _TooManyError
    found: list[tuple[int, int, bytes]] = []

    def without(match: re.Match[bytes]) -> bytes:
        numbers = match[1]
        if numbers is None:
            return b""
        if (octets := _octets(numbers)) is None:
            return match[0]
        found.append((*match.span(), octets))
        return b""

    outside = _STRING_OR_NUMBERS.sub(without, quiet)
    if sum(map(outside.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _TooManyError
    if not found:
        return body, []
    if _PLACE.encode() in outside:
        raise _NotJsonError(f"the body is not JSON: {_PLACE} is no number there")
    kept = bytearray(body)
    for start, end, _ in found:
        # Of the same length, so that a fault further on is told where it is.
        kept[start:end] = _PLACE.encode().ljust(end - start)
    return kept, [octets for _, _, octets in found]


def _octets(numbers: bytes) -> bytes | None:
    """Read a list of octets piece by piece, so that others run in between; None where it is none."""
    found, at = bytearray(), 0
    while at < len(numbers):
        comma = numbers.find(b",", at + _PIECE_OCTETS)
        end = comma if comma >= 0 else len(numbers)
        try:
            found += bytes(json.loads(b"[%b]" % numbers[at:end]))
        except ValueError:
            return None
        at = end + 1
    return None if numbers.endswith(b",") else bytes(found)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _NotJsonError(f"the body has the key {shown(twice)} twice in one object")
    return found


def _refuse_depth(found: object) -> None:
    level: list[object] = [found]
    for _ in range(_DEPTH + 1):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise _NotJsonError(f"the body is nested more than {_DEPTH} deep")


def _containers(found: object) -> list[object]:
    inner = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []
    # The kinds first: most lists hold none.
    if not {dict, list} & set(map(type, inner)):
        return []
    return [one for one in inner if isinstance(one, (dict, list))]
