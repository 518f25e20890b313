"""Bounces and complaints that come by mail (RFC 3464 and 5965), to a return path that names the message.

Whatever bytes a stranger sends, reading them returns, and soon: it looks at the outermost parts only, at few of them,
and has a budget as messages have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import islice

from opensend_milter.core.budget import Budget, OverBudgetError
from opensend_milter.core.feedback import MOST_RECIPIENTS, Recipient, Report, ReportKind, addresses, text_of
from opensend_milter.core.message import HeaderTooLongError, header_fields
from opensend_milter.core.mime import PartHeader, part_header
from opensend_milter.core.model import Address, EmailId
from opensend_milter.core.ses_report import NO_COMPLAINT
from opensend_milter.core.signing import email_of_return_path, return_path_token
from opensend_milter.core.transfer import decoded

MOST_BYTES = 1_000_000
"""What is behind is the message itself, sent back."""
_MOST_PARTS = 10
_MOST_HEADER_BYTES = 65_536
_PREFIX = "b-"
_TOKEN = re.compile(r"b-([a-z2-7]+)@[^@\s]*", re.IGNORECASE | re.ASCII)
_STATUS_KINDS = frozenset({"message/delivery-status", "message/global-delivery-status"})
_COMPLAINT_KIND = "message/feedback-report"
_EMPTY_LINES = re.compile(rb"\r?\n(?>(?:[ \t]*\r?\n)+)")
_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\d)", re.ASCII)
_REPLY_CODE = re.compile(r"([45])\d\d(?!\d)", re.ASCII)
_ESCAPED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_KINDS: Mapping[str, ReportKind] = {
    "failed": "bounced",
    "delayed": "delivery_delayed",
    "delivered": "delivered",
    "relayed": "sent",
    "expanded": "sent",
}
_NOT_OF_THE_ADDRESS = re.compile(r"5\.2\.[23]|5\.3\.4|5\.[67]\.\d+")
"""A full mailbox, too large, its content, a policy: the next message may fare better."""


def return_path(key: bytes, email_id: EmailId, bounce_domain: str) -> Address:
    """Return the address that the bounces of one message come to."""
    return Address(f"{_PREFIX}{return_path_token(key, email_id)}@{bounce_domain}")


def email_of(key: bytes, recipient: str) -> EmailId | None:
    """Return the email that a bounce is about, by the address it came to; None where that is none of ours."""
    found = _TOKEN.fullmatch(recipient)
    return email_of_return_path(key, found[1]) if found else None


def reports(raw: bytes, email_id: EmailId) -> list[Report]:
    """Read a bounce or a complaint; nothing where the mail is neither, such as the answer of somebody on vacation."""
    raw = raw[:MOST_BYTES]
    try:
        return _reports(raw, email_id, Budget.of(len(raw)))
    except OverBudgetError:
        return []


def _reports(raw: bytes, email_id: EmailId, budget: Budget) -> list[Report]:
    header, body = _header(raw, budget)
    if header.kind != "multipart/report" or not header.boundary:
        return []
    for part in islice(_parts(raw[body:], header.boundary), _MOST_PARTS):
        inner, start = _header(part, budget)
        if inner.kind in _STATUS_KINDS:
            return list(_bounces(_groups(part, start, inner.encoding, budget), email_id))
        if inner.kind == _COMPLAINT_KIND:
            return list(_complaint(next(_groups(part, start, inner.encoding, budget), {}), email_id))
    return []


def _header(raw: bytes, budget: Budget) -> tuple[PartHeader, int]:
    try:
        fields, body = header_fields(raw, 0, len(raw), at_most=_MOST_HEADER_BYTES, budget=budget)
    except HeaderTooLongError:
        fields, body = [], len(raw)
    return part_header(((name, text_of(value)) for name, value in fields), budget), body


def _parts(body: bytes, boundary: str) -> Iterator[bytes]:
    """Cut a multipart at its boundary lines; the last part may lack its closing line."""
    delimiter = re.escape(b"--" + boundary.encode("latin-1", "replace"))
    lines = re.finditer(rb"(?:\A|\n)" + delimiter + rb"(--)?[ \t]*+(?=\r?\n|\Z)", body)
    begun: int | None = None
    for line in lines:
        if begun is not None:
            yield body[begun : line.start()]
        if line[1]:
            return
        # The line end itself is left to the part, so that one without a header begins with an empty line.
        begun = line.end() + (2 if body[line.end() : line.end() + 1] == b"\r" else 1)
    if begun is not None:
        yield body[begun:]


def _groups(part: bytes, start: int, encoding: str, budget: Budget) -> Iterator[Mapping[str, str]]:
    """Yield the groups of fields that a report is made of; of a repeated field the first counts."""
    content = b"".join(decoded(part, start, len(part), encoding)).strip(b"\r\n")
    for group in _EMPTY_LINES.split(content, MOST_RECIPIENTS)[: MOST_RECIPIENTS + 1]:
        found: dict[str, str] = {}
        for name, value in header_fields(group, 0, len(group), budget=budget)[0]:
            found.setdefault(name, text_of(value.encode("latin-1").decode("utf-8", "replace")))
        yield found


def _bounces(groups: Iterator[Mapping[str, str]], email_id: EmailId) -> Iterator[Report]:
    for group in groups:
        action = group.get("action", "").partition(" ")[0].strip().lower()
        kind = _KINDS.get(action)
        if kind is None:
            continue
        names = addresses(_typed(group, "final-recipient"), _typed(group, "original-recipient"))
        status = _status(group)
        named = ",".join(names)
        yield Report(
            kind=kind,
            source_id=_digest("dsn", email_id, named, action, status),
            email_id=email_id,
            recipients=(Recipient(names=names, status=status, diagnostic=group.get("diagnostic-code", "")),),
            permanent=status.startswith("5") and not _NOT_OF_THE_ADDRESS.fullmatch(status),
            via="mail",
            at=group.get("last-attempt-date", ""),
            details={"action": action},
        )


def _complaint(group: Mapping[str, str], email_id: EmailId) -> Iterator[Report]:
    feedback_type = group.get("feedback-type", "").lower()
    if not feedback_type or feedback_type in NO_COMPLAINT:
        return
    names = addresses(group.get("original-rcpt-to", ""))
    yield Report(
        kind="complained",
        source_id=_digest("arf", email_id, ",".join(names), feedback_type),
        email_id=email_id,
        recipients=(Recipient(names=names),),
        via="mail",
        at=group.get("arrival-date", ""),
        details={"complaintFeedbackType": feedback_type, "userAgent": group.get("user-agent", "")},
    )


def _typed(group: Mapping[str, str], name: str) -> str:
    """Return the address of a field such as `rfc822; user@example.net` (RFC 3464, 2.3.1; RFC 6533, 3)."""
    kind, typed, address = group.get(name, "").rpartition(";")
    return _ESCAPED.sub(_unescaped, address.strip()) if typed and "utf-8" in kind.lower() else address.strip()


def _unescaped(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return chr(code) if code <= _MAX_CODE_POINT and code not in _SURROGATES else match[0]


def _status(group: Mapping[str, str]) -> str:
    """Return the enhanced code; where there is none, what the answer of the other server says."""
    diagnostic = group.get("diagnostic-code", "")
    found = _STATUS.match(group.get("status", "").strip()) or _STATUS.search(diagnostic)
    if found:
        return found[0]
    code = _REPLY_CODE.search(diagnostic)
    return f"{code[1]}.0.0" if code else ""


def _digest(*parts: str) -> str:
    return f"{parts[0]}:" + hashlib.sha256("\n".join(parts[1:]).encode("utf-8", "replace")).hexdigest()
