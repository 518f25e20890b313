"""A request -> the bytes of a message (RFC 5322, MIME) and its envelope; what is asked of us becomes control fields.

So a message over HTTP is read, judged, stored and sent exactly as one over SMTP. Every header line is made by `_field`,
which refuses what could end a line; text reaches it as encoded words.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

from opensend_milter.core.address import quoted, same_recipient
from opensend_milter.core.control import METADATA, SEND_AT, TAG
from opensend_milter.core.errors import MalformedMessage
from opensend_milter.core.model import Address, Mailbox
from opensend_milter.core.request import File, SendRequest
from opensend_milter.core.row import ascii_domain

LINE_OCTETS = 78
_PIECE = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
_NAME = re.compile(r"[!-9;-~]{1,126}")
_WORDS = re.compile(r"(?!.*=\?)[!-~]{1,60}(?: [!-~]{1,60})*")
"""What stands in a header field as it is: folded at its spaces, nobody takes it for something else."""
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_SINGLE_SPACE = re.compile(r"(?<=[^ ]) (?=[^ ])")
_WORD_OCTETS = 39
"""Of one encoded word, before encoding: so that the first fits behind a name."""
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9_()+,@-][A-Za-z0-9 ._()+,@-]{0,59}")
_SECTION_OCTETS = 55
_OF_A_TYPE = re.compile(r'(?>(?:[^;"]|"(?>(?:[^"\\]|\\.?)*)(?:"|\Z))+);?', re.DOTALL)
_SEVEN_BIT = re.compile(r"(?:(?=[\t -~]{0,77}[!-~]\r\n|\r\n)[^\n]*+\n)*+(?:[\t -~]{0,77}[!-~])?")
_MARK = "=_"
"""Every boundary begins with it: it is in no base64, no quoted-printable, and no part that we leave unencoded."""
_OCTETS_A_LINE = 57
_PIECE_OCTETS = _OCTETS_A_LINE * 16_384
_COMMON = bytes(octet for octet in (9, 10, 13, *range(32, 127)) if octet != ord("="))
"""Octets that quoted-printable leaves as they are."""
_MUCH = 6
"""One octet in so many: beyond that, base64 is shorter than quoted-printable."""

Part = tuple[bytes, ...]
"""Header fields, an empty line and the body; several, so that a large body is not copied for each level."""


def write(request: SendRequest, *, sender: Mailbox, message_id: str, date: datetime) -> bytes:
    """Write the message with CRLF line ends, in ASCII where its addresses are; `message_id` has its angle brackets."""
    mark = hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    fields = [
        _field("From", _mailbox(Mailbox(request.from_name or sender.name, sender.address))),
        _field("To", _mailboxes(request.to) if request.to else ["undisclosed-recipients:;"]),
        *(
            _field(name, _mailboxes(shown))
            for name, shown in (("Cc", request.cc), ("Reply-To", request.reply_to))
            if shown
        ),
        _field("Subject", _text(request.subject)),
        _field("Date", [format_datetime(date.astimezone(UTC))]),
        _field("Message-ID", [message_id]),
        *(_field(name, _SINGLE_SPACE.split(value)) for name, value in request.headers),
        *_control_fields(request),
        _field("MIME-Version", ["1.0"]),
    ]
    return b"".join((*fields, *_body(request, mark)))


def envelope(request: SendRequest) -> tuple[Address, ...]:
    """Return whom it goes to, each once, as over SMTP."""
    found: dict[tuple[str, str], Address] = {}
    for mailbox in (*request.to, *request.cc, *request.bcc):
        found.setdefault(same_recipient(mailbox.address), mailbox.address)
    return tuple(found.values())


# ---------------------------------------------------------------------- header fields


def _field(name: str, pieces: Iterable[str]) -> bytes:
    """Write a header field, folded between its pieces; raise MalformedMessage where one could end the line."""
    if not _NAME.fullmatch(name):
        raise MalformedMessage("a header field's name is no name")
    lines = [f"{name}:"]
    for place, piece in enumerate(pieces):
        if not _PIECE.fullmatch(piece):
            raise MalformedMessage(f"{name}: a character that must not be in a header field")
        # Some readers lose a value that begins in the second line.
        if place and len(lines[-1]) + len(piece) >= LINE_OCTETS:
            lines.append("")
        lines[-1] += f" {piece}"
    return "\r\n".join((*lines, "")).encode("utf-8")


def _text(text: str) -> list[str]:
    """Write unstructured text."""
    return text.split(" ") if _WORDS.fullmatch(text) else _encoded_words(text)


def _encoded_words(text: str) -> list[str]:
    """Write RFC 2047 words, none of which splits a character."""
    chunks = [b""]
    for char in text:
        octets = char.encode("utf-8")
        if len(chunks[-1]) + len(octets) > _WORD_OCTETS:
            chunks.append(b"")
        chunks[-1] += octets
    return [_encoded_word(chunk) for chunk in chunks]


def _encoded_word(octets: bytes) -> str:
    base64 = binascii.b2a_base64(octets, newline=False).decode("ascii")
    quoted = quote(octets, safe="!*+-/ ").replace("_", "=5F").replace(".", "=2E").replace("~", "=7E")
    quoted = quoted.replace("%", "=").replace(" ", "_")
    return f"=?utf-8?q?{quoted}?=" if len(quoted) <= len(base64) else f"=?utf-8?b?{base64}?="


def _mailboxes(mailboxes: Sequence[Mailbox]) -> Iterator[str]:
    for place, mailbox in enumerate(mailboxes, 1):
        *pieces, last = _mailbox(mailbox)
        yield from pieces
        yield last if place == len(mailboxes) else f"{last},"


def _mailbox(mailbox: Mailbox) -> list[str]:
    address = quoted(ascii_domain(mailbox.address))
    if not mailbox.name:
        return [address]
    return [*_phrase(mailbox.name), f"<{address}>"]


def _phrase(name: str) -> list[str]:
    if not _WORDS.fullmatch(name):
        return _encoded_words(name)
    if _PHRASE.fullmatch(name):
        return name.split(" ")
    escaped = re.sub(r'(["\\])', r"\\\1", name)
    return f'"{escaped}"'.split(" ")


def _control_fields(request: SendRequest) -> Iterator[bytes]:
    """Write what is asked of us: read by `control.wishes`, and never sent on."""
    if request.idempotency_key is not None:
        yield _field("Idempotency-Key", [request.idempotency_key])
    for name, value in request.tags:
        yield _field(TAG, [f"{name}={value}"])
    for name, value in request.metadata.items():
        yield _field(METADATA + name, _text(value) if value else [])
    if request.send_at is not None:
        yield _field(SEND_AT, [_moment(request.send_at)])


def _moment(send_at: datetime | timedelta) -> str:
    if isinstance(send_at, datetime):
        return send_at.isoformat()
    minutes = int(send_at.total_seconds() // 60)
    for unit, length in (("days", 1_440), ("hours", 60)):
        if minutes % length == 0:
            return f"in {minutes // length} {unit}"
    return f"in {minutes} minutes"


# ---------------------------------------------------------------------- parts


def _body(request: SendRequest, mark: str) -> Part:
    """Arrange the bodies: the files that HTML shows go with it, all others beside everything."""
    html = request.html or ""
    text = request.text or ""
    shown = [file for file in request.attachments if file.inline and html]
    others = [file for file in request.attachments if not (file.inline and html)]
    bodies = [_text_part("plain", text)] if text or not html else []
    if html:
        page = _text_part("html", html)
        bodies.append(_multipart("related", [page, *map(_file_part, shown)], mark) if shown else page)
    body = bodies[0] if len(bodies) == 1 else _multipart("alternative", bodies, mark)
    return _multipart("mixed", [body, *map(_file_part, others)], mark) if others else body


def _multipart(subtype: str, parts: Sequence[Part], mark: str) -> Part:
    boundary = f"{_MARK}{subtype}_{mark}"
    kind = [f"multipart/{subtype};", *(['type="text/html";'] if subtype == "related" else [])]
    delimiter = f"--{boundary}\r\n".encode("ascii")
    inner = [piece for part in parts for piece in (delimiter, *part, b"\r\n")]
    return (
        _field("Content-Type", [*kind, f'boundary="{boundary}"']),
        b"\r\n",
        *inner,
        f"--{boundary}--\r\n".encode("ascii"),
    )


def _text_part(subtype: str, text: str) -> Part:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    kind = _field("Content-Type", [f"text/{subtype};", 'charset="utf-8"'])
    if _SEVEN_BIT.fullmatch(text) and _MARK not in text:
        return kind, _encoding("7bit"), b"\r\n", text.encode("ascii")
    octets = text.encode("utf-8")
    if len(octets.translate(None, _COMMON)) * _MUCH > len(octets):
        return kind, _encoding("base64"), b"\r\n", *_base64(octets)
    return kind, _encoding("quoted-printable"), b"\r\n", _quoted_printable(octets)


def _encoding(name: str) -> bytes:
    return _field("Content-Transfer-Encoding", [name])


def _quoted_printable(octets: bytes) -> bytes:
    # The library ends lines as the first line ends, and soft ones with LF where there is none.
    return binascii.b2a_qp(octets.replace(b"\r\n", b"\n"), istext=True).replace(b"\n", b"\r\n")


def _file_part(file: File) -> Part:
    disposition = "inline" if file.inline else "attachment"
    kind, *parameters = _OF_A_TYPE.findall(file.content_type)
    fields = [
        _field("Content-Type", [kind, *(parameter.strip() for parameter in parameters)]),
        _field("Content-Disposition", [f"{disposition};", *_filename(file.filename)]),
        *([_field("Content-ID", [f"<{file.content_id}>"])] if file.content_id else []),
        _encoding("base64"),
    ]
    return *fields, b"\r\n", *_base64(file.content)


def _filename(name: str) -> Iterator[str]:
    """Write the parameter; what a simple reader could misread as RFC 2231 says, no section splitting a character."""
    if _PLAIN_FILENAME.fullmatch(name):
        yield f'filename="{name}"'
        return
    sections = [""]
    for char in name:
        escaped = quote(char, safe="")
        if len(sections[-1]) + len(escaped) > _SECTION_OCTETS:
            sections.append("")
        sections[-1] += escaped
    sections[0] = f"utf-8''{sections[0]}"
    if len(sections) == 1:
        yield f"filename*={sections[0]}"
        return
    for place, section in enumerate(sections):
        yield f"filename*{place}*={section}{';' if place < len(sections) - 1 else ''}"


def _base64(octets: bytes) -> Iterator[bytes]:
    """Write lines of 76, the last without its line end: that belongs to the boundary."""
    for at in range(0, len(octets), _PIECE_OCTETS):
        letters = binascii.b2a_base64(octets[at : at + _PIECE_OCTETS], newline=False)
        lines = b"\r\n".join(letters[begin : begin + 76] for begin in range(0, len(letters), 76))
        yield b"\r\n" + lines if at else lines
