"""The attachments of a request: each field checked, the content decoded once."""

from __future__ import annotations

import binascii
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import eq
from typing import Literal

from opensend_milter.core.fields import UNSAFE, Fields

Dialect = Literal["rele", "resend"]

FILENAME_OCTETS = 255
CONTENT_TYPE_CHARACTERS = 255
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""With these a name can be shown backwards: `gpj.exe` as `exe.jpg`."""
_CONTENT_ID = re.compile(r"<?([A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,128})>?")
_WORD = r"[A-Za-z0-9!#$&^_.+-]{1,127}"
"""RFC 6838, 4.2."""
_KIND = re.compile(rf"({_WORD}/{_WORD})[ \t]*((?:;.*)?)")
_PARAMETER = re.compile(rf';[ \t]*({_WORD})=(?:({_WORD})|"((?:[ !#-\[\]-~]|\\[ -~])*)")[ \t]*')
_NOT_TOLD = frozenset({"name", "boundary"})
"""Parameters that are ours to write, if anybody's."""
_TYPES = mimetypes.MimeTypes(filenames=()).types_map[True]
"""Without this host's own table."""
_OCTET_STREAM = "application/octet-stream"
_LINE_ENDS = str.maketrans("", "", "\r\n")
_Names = tuple[str, ...]
_NAMES: Mapping[Dialect, tuple[_Names, _Names, str]] = {
    "rele": (("content_type",), ("content_id",), "data"),
    "resend": (
        ("content_type", "contentType"),
        ("content_id", "contentId", "inline_content_id", "inlineContentId"),
        "content",
    ),
}
"""How each dialect calls a file's type, its id and its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One attachment."""

    filename: str
    content_type: str
    """Written by us from what was asked for: safe in a header field."""
    content: bytes = field(repr=False)
    content_id: str | None = None
    """Without angle brackets."""

    @property
    def inline(self) -> bool:
        """Tell whether an HTML body may show it."""
        return self.content_id is not None


def read_files(fields: Fields, dialect: Dialect, *, at_most: int, max_bytes: int) -> tuple[File, ...]:
    """Take the attachments; `max_bytes` is for all of them as base64."""
    value = fields.take("attachments")
    if value is None:
        return ()
    if not isinstance(value, list):
        fields.fault("attachments", "expected a list of objects", "wrong_type")
        return ()
    if len(value) > at_most:
        fields.fault("attachments", f"{len(value)} are over the limit of {at_most}", "too_many")
        return ()
    room = max_bytes
    found: list[File] = []
    for index, one in enumerate(value):
        here = f"attachments[{index}]"
        if not isinstance(one, dict):
            fields.fault(here, "expected an object", "wrong_type")
        elif file := _file(Fields(one, fields.errors, f"{here}."), dialect, room):
            room -= _letters(len(file.content))
            if file.inline and any(file.content_id == other.content_id for other in found):
                fields.fault(f"{here}.content_id", "another attachment has the same", "invalid")
            found.append(file)
    return tuple(found)


def _file(fields: Fields, dialect: Dialect, room: int) -> File | None:
    before = len(fields.errors)
    kind_names, id_names, content_name = _NAMES[dialect]
    if dialect == "resend" and fields.take("path") is not None:
        fields.fault("path", "files are not fetched here; send their content", "not_offered")
    filename = fields.string("filename", required=True)
    if filename is not None and (fault := _filename_fault(filename)):
        fields.fault("filename", fault, "invalid")
    kind = fields.string(*kind_names, required=dialect == "rele")
    content_type = _content_type(kind) if kind is not None else _guess(filename or "")
    if content_type is None:
        fault = "expected type/subtype, with parameters as name=value; not multipart"
        fields.fault(kind_names[0], fault, "invalid")
    content_id = fields.string(*id_names)
    match = _CONTENT_ID.fullmatch(content_id) if content_id is not None else None
    if content_id is not None and not match:
        fields.fault(id_names[0], "expected 1 to 128 letters, digits and punctuation, as logo@example", "invalid")
    content = _content(fields, content_name, room)
    fields.refuse_the_rest()
    if len(fields.errors) > before or filename is None or content_type is None or content is None:
        return None
    return File(
        filename=filename,
        content_type=content_type,
        content=content,
        content_id=match[1] if match else None,
    )


def _filename_fault(name: str) -> str | None:
    if UNSAFE.search(name) or _BIDI.search(name):
        return "holds a control character, a line separator or one that turns the direction of writing"
    if not 1 <= len(name.encode()) <= FILENAME_OCTETS:
        return f"expected 1 to {FILENAME_OCTETS} octets"
    if "/" in name or "\\" in name or name in {".", ".."}:
        return "a name without a path, please"
    if name != name.strip() or "=?" in name:
        return "no space at its ends and no =? in it, please: mail programs would show another name"
    return None


def _content_type(asked: str) -> str | None:
    """Write a type anew from what can be read of it.

    A part of type message must not be base64 (RFC 2046, 5.2), which is how every attachment goes.
    """
    match = _KIND.fullmatch(asked.strip(" \t")) if len(asked) <= CONTENT_TYPE_CHARACTERS else None
    if not match:
        return None
    kind, rest = match[1].lower(), match[2]
    parameters: dict[str, str] = {}
    while rest.rstrip("; \t"):
        parameter = _PARAMETER.match(rest)
        if not parameter or parameter[1].lower() in parameters:
            return None
        value = parameter[2] or re.sub(r"\\(.)", r"\1", parameter[3] or "")
        parameters[parameter[1].lower()] = value
        rest = rest[parameter.end() :]
    if kind.startswith("multipart/"):
        return None
    if kind.startswith("message/"):
        return _OCTET_STREAM
    return kind + "".join(f"; {name}={_quoted(text)}" for name, text in parameters.items() if name not in _NOT_TOLD)


def _quoted(value: str) -> str:
    return value if re.fullmatch(_WORD, value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _guess(filename: str) -> str:
    _, dot, extension = filename.rpartition(".")
    return _content_type(_TYPES.get(dot + extension.lower(), _OCTET_STREAM)) or _OCTET_STREAM


def _content(fields: Fields, name: str, room: int) -> bytes | None:
    value = fields.take(name, required=True)
    if value is None:
        return None
    content: bytes | None = None
    if isinstance(value, str):
        if len(value) <= _with_line_ends(room):
            content = _from_base64(value)
        size = len(content) if content is not None else len(value) // 4 * 3
    else:
        octets = value.get("data") if isinstance(value, dict) and value.keys() == {"type", "data"} else value
        size = len(octets) if isinstance(octets, list | bytes) else 0
        if name == "content" and _letters(size) <= room:
            content = _from_numbers(octets)
    if _letters(size) > room:
        fields.fault(name, "the attachments together are over the limit, as base64", "too_large")
    elif content is None:
        fields.fault(name, "expected base64 of the standard alphabet, with its padding", "invalid")
    return content


def _from_base64(value: str) -> bytes | None:
    # Only where there are line ends: a copy of a large file for nothing, otherwise.
    letters = value.translate(_LINE_ENDS) if "\n" in value or "\r" in value else value
    try:
        content = binascii.a2b_base64(letters, strict_mode=True)
    except ValueError:
        return None
    # Strict as it is, it takes padding where none is due.
    return content if _letters(len(content)) == len(letters) else None


def _from_numbers(octets: object) -> bytes | None:
    """Read what clients of Resend send for a file: Python's a list of octets, Node's such a list in an object."""
    if isinstance(octets, bytes):
        return octets
    if not isinstance(octets, list) or not set(map(type, octets)) <= {int, float}:
        return None
    try:
        content = bytes(map(int, octets))
    except (ValueError, OverflowError):
        return None
    # JSON has one kind of number: 3.0 is 3.
    return content if all(map(eq, content, octets)) else None


def _letters(octets: int) -> int:
    return (octets + 2) // 3 * 4


def _with_line_ends(letters: int) -> int:
    return letters + letters // 38 + 2
