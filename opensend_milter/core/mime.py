"""What a part of a message says of itself: type, disposition, transfer encoding, each with its parameters.

Values are cut at semicolons outside quotes and put together by RFC 2231; each octet is gone over once.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from opensend_milter.core.budget import Budget
from opensend_milter.core.charsets import decode

LONGEST_VALUE = 16_384
_PIECE = re.compile(r';((?>(?:[^;"\\]+|\\"?|"(?>(?:[^"\\]+|\\.?)*)(?:"|\Z))*))', re.DOTALL)
"""Up to the next semicolon outside quotes; a quote that is left open goes on to the end."""
_PART_OF_NAME = re.compile(r"([^*\s]++)\*(?:(\d{1,4})\*?)?", re.ASCII)
_NAME = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]++"
_PLAIN_WORD = re.compile(rf"[ \t]*+{_NAME}(?:/{_NAME})?[ \t]*+")
_PLAIN_PIECE = re.compile(rf'[ \t]*+(?:{_NAME}[ \t]*+=[ \t]*+(?:[^\s"();\\]++|"(?>(?:[^";\\]+|\\["\\])*)")[ \t]*+)?')
"""Nothing, or a parameter without comments, and without a semicolon that a careless reader would cut at."""
_NAMES = ("filename", "name")
_REMEMBERED_CHARACTERS = 120
_TURNS = {";": 2, "\\": 1, "%": 1}
"""Steps that each of these costs, by making a turn of some loop."""
NONE: Mapping[str, str] = MappingProxyType({})
_TYPES = mimetypes.MimeTypes()
"""Without this host's own table: a name must not depend on which packages are installed."""
_ENDINGS = {
    "text/calendar": ".ics",
    "text/markdown": ".md",
    "text/rfc822-headers": ".txt",
    "text/rtf": ".rtf",
    "text/vcard": ".vcf",
    "text/x-amp-html": ".html",
    "image/webp": ".webp",
    "image/x-icon": ".ico",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "video/3gpp": ".3gp",
    "application/epub+zip": ".epub",
    "application/gzip": ".gz",
    "application/ics": ".ics",
    "application/ms-tnef": ".dat",
    "application/pgp-keys": ".asc",
    "application/pgp-signature": ".asc",
    "application/pkcs7-mime": ".p7m",
    "application/pkcs7-signature": ".p7s",
    "application/rtf": ".rtf",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/x-7z-compressed": ".7z",
    "application/x-gzip": ".gz",
    "application/x-pkcs7-mime": ".p7m",
    "application/x-pkcs7-signature": ".p7s",
    "application/x-zip-compressed": ".zip",
    "application/xml": ".xml",
    "message/delivery-status": ".txt",
    "message/disposition-notification": ".txt",
    "message/feedback-report": ".txt",
    "message/global": ".eml",
    "message/global-delivery-status": ".txt",
    "message/global-disposition-notification": ".txt",
    "message/global-headers": ".txt",
}
"""Of types that Python does not know, or has another name for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """The MIME fields of one part."""

    kind: str
    parameters: Mapping[str, str]
    disposition: str
    disposition_parameters: Mapping[str, str]
    encoding: str
    content_id: str
    unclear: tuple[str, ...] = ()
    """Fields that others may read otherwise: odd, too long, or there twice."""

    @property
    def boundary(self) -> str:
        """What separates the parts of a multipart; empty for other kinds."""
        return self.parameters.get("boundary", "").rstrip() if self.kind.startswith("multipart/") else ""

    @property
    def filename(self) -> str:
        """The name as sent, encoded words and all."""
        return self.disposition_parameters.get("filename") or self.parameters.get("name", "")


def part_header(fields: Iterable[tuple[str, str]], budget: Budget, *, without_type: str = "text/plain") -> PartHeader:
    """Read the MIME fields among a part's own; of repeated ones the first counts."""
    found: dict[str, str] = {}
    unclear: list[str] = []
    for name, value in fields:
        if not name.startswith("content-"):
            continue
        if name in found or len(value) > LONGEST_VALUE:
            unclear.append(name)
        else:
            found[name] = value
    kind, parameters, is_plain = _parsed(found.get("content-type", ""), budget)
    is_kind = kind.count("/") == 1
    if not is_plain or (kind and not is_kind):
        unclear.append("content-type")
    disposition, disposition_parameters, is_plain = _parsed(found.get("content-disposition", ""), budget)
    if not is_plain:
        unclear.append("content-disposition")
    return PartHeader(
        kind=kind if is_kind else without_type,
        parameters=parameters,
        disposition=disposition,
        disposition_parameters=disposition_parameters,
        encoding=found.get("content-transfer-encoding", "").strip().lower(),
        content_id=found.get("content-id", "").strip(" \t<>"),
        unclear=tuple(unclear),
    )


def ending(kind: str) -> str:
    """Return how names of files of that type usually end."""
    return _ENDINGS.get(kind) or _TYPES.guess_extension(kind) or ".bin"


class _Value(NamedTuple):
    word: str
    parameters: Mapping[str, str]
    is_plain: bool
    """Everybody reads it so."""


_NOTHING = _Value("", NONE, is_plain=True)


def _parsed(value: str, budget: Budget) -> _Value:
    if not value:
        return _NOTHING
    if len(value) <= _REMEMBERED_CHARACTERS:
        return _remembered(value)
    turns = sum(steps * value.count(sign) for sign, steps in _TURNS.items())
    budget.spend(len(value) // _REMEMBERED_CHARACTERS + turns, "parameters")
    return _parse(value)


def _parse(value: str) -> _Value:
    word, *pieces = _PIECE.findall(";" + value)
    parameters: dict[str, str] = {}
    of_parts: dict[str, list[tuple[int, bool, str]]] = {}
    names: list[str] = []
    for name, text in _pairs(pieces):
        names.append(name)
        split = _PART_OF_NAME.fullmatch(name)
        if split:
            number = int(split[2]) if split[2] else 0
            of_parts.setdefault(split[1], []).append((number, name.endswith("*"), text))
        else:
            parameters.setdefault(name, text)
    for name, found in of_parts.items():
        if name in _NAMES:  # the plain one is there for those who know no RFC 2231
            parameters[name] = _joined(found)
        else:
            parameters.setdefault(name, _joined(found))
    is_plain = (
        _PLAIN_WORD.fullmatch(word) is not None
        and all(map(_PLAIN_PIECE.fullmatch, pieces))
        and len(set(names)) == len(names)
        and "boundary" not in of_parts  # many know no RFC 2231 there
    )
    return _Value(word.partition("=")[0].strip().lower(), MappingProxyType(parameters), is_plain)


def _pairs(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    for piece in pieces:
        name, _, text = piece.partition("=")
        name = name.strip().lower()
        if name:
            yield name, _unquoted(text.strip())


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r'\\([\\"])', r"\1", text[1:-1])
    return text


def _joined(parts: list[tuple[int, bool, str]]) -> str:
    """Put a value together that was sent in parts; the first names the charset of those that are percent-encoded."""
    parts.sort(key=itemgetter(0))
    charset = ""
    number, is_encoded, first = parts[0]
    if is_encoded and first.count("'") > 1:
        charset, _, text = first.split("'", 2)
        parts[0] = number, is_encoded, text
    # Neighbours together: a character may be cut between two of them.
    return "".join(
        decode(b"".join(unquote_to_bytes(text) for _, _, text in run), charset)
        if is_encoded
        else "".join(text for _, _, text in run)
        for is_encoded, run in groupby(parts, key=itemgetter(1))
    )


_remembered = lru_cache(maxsize=1_024)(_parse)
