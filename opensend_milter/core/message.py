"""Raw bytes -> header fields, bodies, attachments. Works on slices; never builds a message again.

Whatever a stranger sends, `read` returns: sizes and counts are bounded before anything is looked at closely, and
what a part claims of itself (charset, encoding, boundary) is taken as mail clients take it, never as a promise.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass

from opensend_milter.core.address import (
    NotAnAddressListError,
    decode_words,
    parse_addresses,
    parse_some_addresses,
)
from opensend_milter.core.control import METADATA, ControlFieldError, Wishes, wishes
from opensend_milter.core.mime import PartHeader, part_header
from opensend_milter.core.model import Attachment, Limits, Mailbox, Reading, Refuse, refuse
from opensend_milter.core.rules import Rule
from opensend_milter.core.transfer import Base64, Buffer, decoded

_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_FIELD_END = re.compile(rb"\n(?![ \t])")
_HEADER_END = re.compile(rb"\n\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n")
_AFTER_BOUNDARY = re.compile(rb"(--)?[ \t]*(?:\r?\n|\Z)")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_EIGHT_BIT = re.compile(rb"[\x80-\xff]")
_KEPT_PARAMETERS = ("method", "smime-type", "charset")
_TYPES = mimetypes.MimeTypes()
"""Without this host's own table: a name must not depend on which packages are installed."""
_TYPES.add_type("text/calendar", ".ics")
_CONTENT_ID = re.compile(r"[!-~]{1,255}")
_LINE_END = re.compile(r"\r\n|\r|\n")
_KIND = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}/[A-Za-z0-9!#$&^_.+-]{1,80}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}")
_FIELD_BYTES = 54_000
"""Longest header field, folding included: Postfix cuts one at 60,000 without a word, at a line's end before that."""


class _RefusedError(Exception):
    def __init__(self, refusal: Refuse) -> None:
        self.refusal = refusal


def read(raw: Buffer, limits: Limits) -> Reading | Refuse:
    """Read a message, or say why it cannot be taken."""
    try:
        return _read(raw, limits)
    except _RefusedError as error:
        return error.refusal


def header_fields(raw: Buffer, start: int, end: int) -> tuple[list[tuple[str, bytes]], int]:
    """Return the fields of a header section (lower-case name, value unfolded) and where the body begins."""
    match = _EMPTY_LINE.match(raw, start, end) or _HEADER_END.search(raw, start, end)
    head = bytes(raw[start : match.start() if match else end])
    body = match.end() if match else end
    lines = re.split(rb"\r?\n", _FOLD.sub(b"", head))
    found = filter(None, map(_FIELD.match, lines))
    return [(field[1].decode("ascii").lower(), field[2].strip(b" \t\r\n")) for field in found], body


def has_longer_line(raw: Buffer, octets: int) -> bool:
    """Tell whether a line, its CRLF included, is longer than that."""
    line = rb"[^\n]{%d}" % octets
    # Only from line to line: begun at each octet, the search would read each line as often as it is long.
    return re.match(line, raw) is not None or re.search(rb"\n" + line, raw) is not None


def has_eight_bit(raw: Buffer) -> bool:
    """Tell whether an octet is beyond ASCII."""
    return _EIGHT_BIT.search(raw) is not None


def _read(raw: Buffer, limits: Limits) -> Reading:
    match = _HEADER_END.search(raw)
    if (match.start() if match else len(raw)) > limits.max_header_bytes:
        raise _beyond(f"header section over {limits.max_header_bytes} octets")
    fields, body = header_fields(raw, 0, len(raw))
    if body > _FIELD_BYTES and max(map(len, _FIELD_END.split(bytes(raw[:body])))) > _FIELD_BYTES:
        raise _beyond(f"a header field over {_FIELD_BYTES} octets")
    if len(fields) > limits.max_header_fields:
        raise _beyond(f"more than {limits.max_header_fields} header fields")
    text: list[str] = []
    html: list[str] = []
    attachments: list[Attachment] = []
    for part in _leaves(raw, fields, body, limits):
        if part.is_body and part.kind == "text/plain":
            text.append(part.text())
        elif part.is_body and part.kind == "text/html":
            html.append(part.text())
        else:
            attachments.append(part.attachment(len(attachments) + 1))
    unfolded = tuple((name, _text(value)) for name, value in fields)
    return Reading(
        sender=_only_sender(unfolded, limits),
        to=_mailboxes(unfolded, "to", limits),
        cc=_mailboxes(unfolded, "cc", limits),
        reply_to=_mailboxes(unfolded, "reply-to", limits),
        subject=decode_words(_first(unfolded, "subject") or ""),
        message_id=_first(unfolded, "message-id"),
        fields=unfolded,
        wishes=_wishes(unfolded),
        text="\r\n".join(text),
        html="\r\n".join(html),
        attachments=tuple(attachments),
    )


def _only_sender(fields: tuple[tuple[str, str], ...], limits: Limits) -> Mailbox:
    """Return the one address of the one From field: all that a reader of this mail can be shown."""
    values = [value for name, value in fields if name == "from"]
    if not values:
        raise _no(Rule.FROM_MISSING, "the message has no From header field; add one")
    if len(values) > 1:
        raise _no(Rule.FROM_NOT_ONE, f"the message has {len(values)} From header fields; send exactly one")
    if "\x00" in values[0]:
        raise _no(Rule.FROM_MALFORMED, "the From header field holds a NUL character; remove it")
    try:
        found = parse_addresses(values[0], at_most=limits.max_addresses, plain=True)
    except NotAnAddressListError as error:
        raise _no(Rule.FROM_MALFORMED, f"the From header field is not one address ({error}); "
                                       "write it as: Name <user@domain>") from None  # fmt: skip
    if len(found) != 1:
        raise _no(Rule.FROM_NOT_ONE, f"the From header field holds {len(found)} addresses; it must hold exactly one")
    return found[0]


def _wishes(fields: tuple[tuple[str, str], ...]) -> Wishes:
    try:
        return wishes((name, decode_words(value) if name.startswith(METADATA) else value) for name, value in fields)
    except ControlFieldError as error:
        raise _RefusedError(refuse(Rule.CONTROL_FIELD, str(error))) from None


def _mailboxes(fields: tuple[tuple[str, str], ...], name: str, limits: Limits) -> tuple[Mailbox, ...]:
    found: list[Mailbox] = []
    for field, value in fields:
        if field != name:
            continue
        if value.count(",") >= limits.max_addresses:
            raise _beyond(f"more than {limits.max_addresses} addresses in the header field {name.title()}")
        found += parse_some_addresses(value, at_most=limits.max_addresses)
    return tuple(found)


def _first(fields: tuple[tuple[str, str], ...], name: str) -> str | None:
    return next((value for field, value in fields if field == name), None)


def _text(value: bytes) -> str:
    """Raw UTF-8 in a header is legal mail (RFC 6532); what is not UTF-8 is most likely Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class _Part:
    raw: Buffer
    start: int
    end: int
    header: PartHeader
    kind: str

    @property
    def is_body(self) -> bool:
        return (
            self.kind in {"text/plain", "text/html"}
            and self.header.disposition != "attachment"
            and self._filename() is None
        )

    def text(self) -> str:
        charset = self.header.parameters.get("charset", "").lower() or "utf-8"
        content = b"".join(decoded(self.raw, self.start, self.end, self.header.encoding))
        try:
            text = content.decode("utf-8" if charset == "us-ascii" else charset, "replace")
        except (LookupError, ValueError):
            text = content.decode("utf-8", "replace")
        return _LINE_END.sub("\r\n", text).replace("\x00", "\ufffd")

    def attachment(self, number: int) -> Attachment:
        return Attachment(
            filename=self._filename() or self._default_name(number),
            content_type=self._content_type(),
            content_id=self.header.content_id if _CONTENT_ID.fullmatch(self.header.content_id) else None,
            content=Base64.of(self.raw, self.start, self.end, self.header.encoding),
        )

    def _content_type(self) -> str:
        """Keep the parameters without which a part is something else: an invitation, an S/MIME message."""
        found = ((name, self.header.parameters.get(name, "")) for name in _KEPT_PARAMETERS)
        # A part of type message must not be base64 (RFC 2046, 5.2), which is all that OpenSend's row has.
        fits = _KIND.fullmatch(self.kind) and not self.kind.startswith("message/")
        kind = self.kind if fits else "application/octet-stream"
        return kind + "".join(f"; {name}={value}" for name, value in found if _TOKEN.fullmatch(value))

    def _filename(self) -> str | None:
        if not self.header.filename:
            return None
        return _one_line(decode_words(self.header.filename))[-255:] or None

    def _default_name(self, number: int) -> str:
        if self.kind == "message/rfc822":
            return f"message-{number}.eml"
        return f"attachment-{number}{_TYPES.guess_extension(self.kind) or '.bin'}"


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()


def _leaves(raw: Buffer, fields: list[tuple[str, bytes]], body: int, limits: Limits) -> Iterator[_Part]:
    """Walk the MIME tree in order, without recursion."""
    seen = 0
    pending: list[tuple[list[tuple[str, bytes]], int, int, int]] = [(fields, body, len(raw), 0)]
    while pending:
        fields, start, end, depth = pending.pop()
        seen += 1
        if seen > limits.max_parts:
            raise _beyond(f"more than {limits.max_parts} MIME parts")
        if depth > limits.max_depth:
            raise _beyond(f"MIME parts nested more than {limits.max_depth} deep")
        header = part_header((name, _text(value)) for name, value in fields if name.startswith("content-"))
        spans = list(_spans(raw, start, end, header.boundary, limits.max_parts)) if header.boundary else []
        if not spans:
            # A multipart that cannot be split is shown as text, as mail clients do.
            kind = "text/plain" if header.kind.startswith("multipart/") else header.kind
            yield _Part(raw, start, end, header, kind)
            continue
        for inner_start, inner_end in reversed(spans):
            inner, inner_body = header_fields(raw, inner_start, inner_end)
            pending.append((inner, inner_body, inner_end, depth + 1))


def _spans(raw: Buffer, start: int, end: int, boundary: str, at_most: int) -> Iterator[tuple[int, int]]:
    """Find the parts of a multipart; the last may lack its closing line (RFC 2046, 5.1.1)."""
    delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
    begun: int | None = None
    found = 0
    at = start
    while (at := raw.find(delimiter, at, end)) >= 0:
        line_start, at = at, at + len(delimiter)
        rest = _AFTER_BOUNDARY.match(raw, at, end)
        if raw[line_start - 1 : line_start] != b"\n" or not rest:
            continue
        if begun is not None:
            line_end = line_start - (2 if raw[line_start - 2 : line_start - 1] == b"\r" else 1)
            found += 1
            if found > at_most:
                raise _beyond(f"more than {at_most} MIME parts")
            yield begun, max(line_end, begun)
        if rest[1]:
            return
        begun = at = rest.end()
    if begun is not None:
        yield begun, end


def _no(rule: Rule, text: str) -> _RefusedError:
    return _RefusedError(refuse(rule, text))


def _beyond(text: str) -> _RefusedError:
    return _RefusedError(refuse(Rule.BEYOND_LIMITS, f"message not taken: {text}"))
