"""What a domain may ask to be added to its messages: opens, clicks, one-click unsubscription (RFC 8058).

A message that carries a signature or is encrypted is never changed, nor is one that readers might split differently.
What is added depends on the message alone, so that each attempt sends the same bytes.
"""

from __future__ import annotations

import binascii
import re
from base64 import encodebytes
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from opensend_milter.core.budget import Budget, OverBudgetError
from opensend_milter.core.charsets import codec_of
from opensend_milter.core.html_links import rewritten
from opensend_milter.core.links import Links, SignedLink, is_one_address, is_web_url
from opensend_milter.core.message import HeaderTooLongError, has_longer_line, header_fields
from opensend_milter.core.mime import PartHeader, part_header
from opensend_milter.core.model import Job

MOST_HTML_BYTES = 5_242_880
MOST_LINKS = 5_000
"""In one part: each makes the message longer."""
MOST_PARTS = 200
MOST_DEPTH = 20

_LINE_OCTETS = 1_000
_SHORT_LINE = 78
_AS_IS = ("", "7bit", "8bit", "binary")
_ONCE = ("content-type", "content-transfer-encoding", "content-disposition")
_SIGNED_KINDS = frozenset({
    "multipart/signed", "multipart/encrypted", "application/pgp-encrypted", "application/pgp-signature",
})  # fmt: skip
_SIGNED_FAMILIES = ("application/pkcs7-", "application/x-pkcs7-")
_SIGNED_NAMES = (".p7m", ".p7s")
_PGP = b"-----BEGIN PGP"
_SIGNATURES = ("dkim-signature", "arc-message-signature")
_LIST_FIELDS = ("list-unsubscribe", "list-unsubscribe-post")
_SIGNED_FIELDS = re.compile(r"(?:\A|;)\s*h\s*=([^;]*)", re.ASCII)
_FIELD_START = re.compile(rb"[!-9;-~]+[ \t]*:")
_ENCODING = re.compile(rb"^content-transfer-encoding[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)

_Fields = list[tuple[str, str]]


class _LeaveAloneError(Exception):
    """The message, or a part of it, stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    start: int
    body: int
    end: int
    fields: _Fields
    header: PartHeader
    around: tuple[bytes, ...]
    """Boundaries of the multiparts that it is in."""

    @property
    def is_body(self) -> bool:
        return (
            self.header.kind in {"text/plain", "text/html"}
            and self.header.disposition != "attachment"
            and not self.header.filename
        )

    @property
    def is_signed(self) -> bool:
        """Tell whether it is, or belongs to, something signed or encrypted."""
        return (
            self.header.kind in _SIGNED_KINDS
            or self.header.kind.startswith(_SIGNED_FAMILIES)
            or self.header.filename.lower().endswith(_SIGNED_NAMES)
        )


def dress(content: bytes, job: Job, links: Links) -> bytes:
    """Return the message with what its domain asks for, as far as that does no harm."""
    route = job.route
    base = links.base(route)
    if not base or not (route.track_opens or route.track_clicks or route.one_click):
        return content
    try:
        fields, _ = header_fields(content, 0, len(content), budget=Budget.of(len(content)))
    except (HeaderTooLongError, OverBudgetError):
        return content
    list_fields = _list_fields(content, fields, job, links, base) if route.one_click else b""
    if route.track_opens or route.track_clicks:
        content = _tracked(content, fields, job, links, base)
    return list_fields + content


def _list_fields(content: bytes, fields: _Fields, job: Job, links: Links, base: str) -> bytes:
    """Write the fields of RFC 8058; empty where they would be wrong, or break a signature."""
    # Attempts before this one may have reached others, or found them refused: all recipients got the same message.
    alone = len(job.recipients) == 1 and not job.some_have_it and not job.refused
    names = {name for name, _ in fields}
    if not (alone and base.startswith("https://") and is_one_address(job.recipients[0])):
        return b""
    if names.intersection(_LIST_FIELDS) or _signs_list_fields(fields) or not _FIELD_START.match(content):
        return b""
    url = links.url(base, SignedLink(kind="unsubscribe", email_id=job.email_id, target=job.recipients[0]))
    line = f"List-Unsubscribe: <{url}>"
    if len(line) > _SHORT_LINE:
        line = line.replace(" ", "\r\n ", 1)
    if len(line) > _LINE_OCTETS - 2:
        return b""
    return f"{line}\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n".encode("ascii")


def _signs_list_fields(fields: _Fields) -> bool:
    """Tell whether a signature says that there are none (RFC 6376, 5.4), or cannot be read."""
    for name, value in fields:
        if name in _SIGNATURES:
            found = _SIGNED_FIELDS.search(value)
            signed = "".join(found[1].split()).lower().split(":") if found else _LIST_FIELDS
            if set(signed).intersection(_LIST_FIELDS):
                return True
    return False


def _tracked(content: bytes, fields: _Fields, job: Job, links: Links, base: str) -> bytes:
    if any(name in {"dkim-signature", "domainkey-signature"} or name.startswith("arc-") for name, _ in fields):
        return content
    try:
        pages = _pages(content, Budget.of(len(content)))
    except (_LeaveAloneError, HeaderTooLongError, OverBudgetError):
        return content
    pieces: list[bytes] = []
    done = 0
    for part in sorted(pages, key=lambda part: part.start):
        pieces += [content[done : part.start], _with_links(content, part, job, links, base)]
        done = part.end
    return b"".join([*pieces, content[done:]])


def _pages(content: bytes, budget: Budget) -> list[_Part]:
    """Find the HTML bodies; raise where the message is signed or encrypted."""
    parts = list(_parts(content, budget))
    if any(part.is_signed or (part.is_body and _PGP in _decoded(content, part)) for part in parts):
        raise _LeaveAloneError
    return [part for part in parts if part.is_body and part.header.kind == "text/html"]


def _parts(content: bytes, budget: Budget) -> Iterator[_Part]:
    """Walk the MIME tree, without recursion; raise where its structure leaves a doubt."""
    pending: list[tuple[int, int, tuple[bytes, ...]]] = [(0, len(content), ())]
    seen = 0
    while pending:
        start, end, around = pending.pop()
        seen += 1
        if seen > MOST_PARTS or len(around) > MOST_DEPTH:
            raise _LeaveAloneError
        fields, body = header_fields(content, start, end, budget=budget)
        names = [name for name, _ in fields]
        if any(names.count(name) > 1 for name in _ONCE):
            raise _LeaveAloneError
        header = part_header(fields, budget)
        yield _Part(start=start, body=body, end=end, fields=fields, header=header, around=around)
        if header.kind.startswith("multipart/"):
            boundary = _boundary(header)
            pending += [(*span, (*around, boundary)) for span in _spans(content, body, end, boundary)]


def _boundary(header: PartHeader) -> bytes:
    try:
        boundary = header.boundary.encode("latin-1")
    except UnicodeEncodeError:
        raise _LeaveAloneError from None
    if not boundary or header.encoding not in _AS_IS:
        raise _LeaveAloneError
    return boundary


def _spans(content: bytes, start: int, end: int, boundary: bytes) -> list[tuple[int, int]]:
    """Find the parts of a multipart, which must be closed."""
    found: list[tuple[int, int]] = []
    begun: int | None = None
    delimiter = re.compile(rb"\n--" + re.escape(boundary) + rb"(--)?[ \t]*+(?=(\r?\n)|\Z)")
    for line in delimiter.finditer(content, max(start - 1, 0), end):
        if begun is not None:
            before = line.start() - content.startswith(b"\r", line.start() - 1)
            found.append((begun, max(before, begun)))
        if line[1]:
            return found
        begun = line.end() + len(line[2] or b"")
        if len(found) > MOST_PARTS:
            break
    raise _LeaveAloneError


def _decoded(content: bytes, part: _Part) -> bytes:
    octets = content[part.body : part.end]
    match part.header.encoding:
        case "quoted-printable":
            return binascii.a2b_qp(octets)
        case "base64":
            try:
                return binascii.a2b_base64(octets.translate(None, b"\r\n\t "), strict_mode=True)
            except binascii.Error:
                raise _LeaveAloneError from None
        case encoding if encoding in _AS_IS:
            return octets
        case _:
            raise _LeaveAloneError


def _with_links(content: bytes, part: _Part, job: Job, links: Links, base: str) -> bytes:
    """Return an HTML part with our links in it, or as it is."""
    as_is = content[part.start : part.end]
    if part.end - part.body > MOST_HTML_BYTES * 3 or any(name == "content-md5" for name, _ in part.fields):
        return as_is
    octets = _decoded(content, part)
    try:
        changed = _dressed_html(octets, part.header.parameters.get("charset", ""), job, links, base)
        return as_is if changed == octets else _written(content, part, changed)
    except _LeaveAloneError:
        return as_is


def _dressed_html(octets: bytes, charset: str, job: Job, links: Links, base: str) -> bytes:
    if len(octets) > MOST_HTML_BYTES:
        raise _LeaveAloneError
    count = 0

    def clicked(url: str) -> str | None:
        nonlocal count
        # Braces are a placeholder that somebody is still to fill in.
        if not is_web_url(url) or "unsubscribe" in url.lower() or "{{" in url:
            return None
        count += 1
        if count > MOST_LINKS:
            raise _LeaveAloneError
        return links.url(base, SignedLink(kind="click", email_id=job.email_id, target=url))

    pixel = _pixel(links.url(base, SignedLink(kind="open", email_id=job.email_id))) if job.route.track_opens else ""
    try:
        codec = codec_of(charset or "utf-8")
        if codec is None:
            raise _LeaveAloneError
        html = octets.decode(codec, "surrogateescape")
        if html.encode(codec, "surrogateescape") != octets:
            raise _LeaveAloneError
        changed = rewritten(html, clicked if job.route.track_clicks else lambda _: None, pixel)
        return changed.encode(codec, "surrogateescape")
    except (LookupError, ValueError):
        raise _LeaveAloneError from None


def _pixel(url: str) -> str:
    return (
        f'<img src="{escape(url)}" width="1" height="1" alt="" '
        'style="display:block;border:0;width:1px;height:1px;overflow:hidden">'
    )


def _written(content: bytes, part: _Part, octets: bytes) -> bytes:
    """Put a part together again, in its own transfer encoding if that still carries it."""
    head = content[part.start : part.body]
    match part.header.encoding:
        case "base64":
            was = content[part.body : part.end]
            body = _base64(octets) + was[len(was.rstrip(b"\r\n")) :]
        case "quoted-printable":
            body = _quoted_printable(octets)
        case _ if not has_longer_line(octets, _LINE_OCTETS):
            body = octets
        case _:
            body = _quoted_printable(octets)
            head = _quoted_printable_head(head)
    delimiters = b"|".join(map(re.escape, part.around))
    # Encoded anew, a line may begin like a boundary that the old encoding hid.
    if part.around and re.search(rb"(?:\A|\n)--(?:" + delimiters + rb")", body):
        raise _LeaveAloneError
    return head + body


def _quoted_printable_head(head: bytes) -> bytes:
    field = b"Content-Transfer-Encoding: quoted-printable\r\n"
    if _ENCODING.search(head):
        return _ENCODING.sub(field, head, count=1)
    if not _FIELD_START.match(head):
        raise _LeaveAloneError
    return field + head


def _base64(octets: bytes) -> bytes:
    return encodebytes(octets).rstrip(b"\n").replace(b"\n", b"\r\n")


def _quoted_printable(octets: bytes) -> bytes:
    lines = (binascii.b2a_qp(line, istext=False) for line in octets.split(b"\r\n"))
    return b"\r\n".join(line.replace(b"\n", b"\r\n") for line in lines)
