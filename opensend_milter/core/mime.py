"""What a part of a message says of itself: type, disposition, transfer encoding, each with its parameters.

Most fields are simple, and the same in every message: those are read by one expression and remembered. The rest is
the standard library's business (quoted pairs, RFC 2231), up to a length: its decoding of continuations is quadratic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message as StandardLibrary
from email.utils import collapse_rfc2231_value
from functools import lru_cache
from types import MappingProxyType

LONGEST_VALUE = 16_384
_SIMPLE = re.compile(
    r'[ \t]*([^\s;=*"]+)((?:[ \t]*;[ \t]*[\w.-]+=(?:"[^"\\]*"|[^\s;"\'*%]+))*)[ \t]*;?[ \t]*', re.ASCII
)
_PARAMETER = re.compile(r';[ \t]*([\w.-]+)=(?:"([^"]*)"|([^\s;"]+))', re.ASCII)
_REMEMBERED_CHARACTERS = 120
NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """The MIME fields of one part."""

    kind: str
    parameters: Mapping[str, str]
    disposition: str
    disposition_parameters: Mapping[str, str]
    encoding: str
    content_id: str

    @property
    def boundary(self) -> str:
        """What separates the parts of a multipart; empty for other kinds."""
        return self.parameters.get("boundary", "").rstrip() if self.kind.startswith("multipart/") else ""

    @property
    def filename(self) -> str:
        """The name as sent, encoded words and all."""
        return self.disposition_parameters.get("filename") or self.parameters.get("name", "")


def part_header(fields: Iterable[tuple[str, str]]) -> PartHeader:
    """Read the MIME fields among a part's own; of repeated ones the first counts."""
    found: dict[str, str] = {}
    for name, value in fields:
        if name.startswith("content-") and len(value) <= LONGEST_VALUE:
            found.setdefault(name, value)
    kind, parameters = _parsed(found.get("content-type", ""))
    disposition, disposition_parameters = _parsed(found.get("content-disposition", ""))
    return PartHeader(
        kind=kind if kind.count("/") == 1 else "text/plain",
        parameters=parameters,
        disposition=disposition,
        disposition_parameters=disposition_parameters,
        encoding=found.get("content-transfer-encoding", "").strip().lower(),
        content_id=found.get("content-id", "").strip(" \t<>"),
    )


def _parsed(value: str) -> tuple[str, Mapping[str, str]]:
    if not value:
        return "", NONE
    return _remembered(value) if len(value) <= _REMEMBERED_CHARACTERS else _parse(value)


def _parse(value: str) -> tuple[str, Mapping[str, str]]:
    simple = _SIMPLE.fullmatch(value)
    if simple:
        pairs = [(name, quoted or bare) for name, quoted, bare in _PARAMETER.findall(simple[2])]
        word = simple[1]
    else:
        word, pairs = _parse_slowly(value)
    parameters: dict[str, str] = {}
    for name, text in pairs:
        parameters.setdefault(name.lower(), text)
    return word.lower(), MappingProxyType(parameters)


def _parse_slowly(value: str) -> tuple[str, list[tuple[str, str]]]:
    lent = StandardLibrary()
    lent["content-type"] = value
    (word, _), *pairs = lent.get_params(failobj=[("", "")])
    # A plain value has lost its quotes already; to be asked again it would lose angle brackets too.
    return word.strip(), [
        (name, text if isinstance(text, str) else collapse_rfc2231_value(text)) for name, text in pairs
    ]


_remembered = lru_cache(maxsize=1_024)(_parse)
