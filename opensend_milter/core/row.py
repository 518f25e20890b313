"""What OpenSend's `emails` row says of a message: who is shown how, and which header fields go along."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formataddr

from opensend_milter.core.address import normal_domain, same_recipient
from opensend_milter.core.control import is_control
from opensend_milter.core.model import Address, Mailbox, Reading

FROM_CHARACTERS = 512
_NAME = re.compile(r"[!-9;-~]{1,126}")
_VALUE_CHARACTERS = 870
_VALUE = re.compile(rf"[ -~]{{1,{_VALUE_CHARACTERS}}}")
"""Amazon SES: MessageHeader."""
_ID = re.compile(r"<[!-;=?-~]+>")
_NEVER_REMOVED = 2
"""Of the ids after the first, RFC 5537, 3.4.4."""
_MOST = 14
"""SES takes fifteen where there are no attachments, and the worker adds one."""
_SHOWN_NAME = 40
_NOTED = 50
_LINE_END = "\r\n"

_WRITTEN_BY_THE_WORKER = frozenset({
    "from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version", "x-entity-id",
})  # fmt: skip
_OF_ONE_HOP = frozenset({
    "received", "return-path", "delivered-to", "sender", "dkim-signature", "domainkey-signature",
    "authentication-results", "x-originating-ip",
})  # fmt: skip
_FAMILIES = ("content-", "resent-", "arc-", "x-ses-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipients:
    """Envelope recipients by how the header shows them; one in neither To nor Cc is a Bcc."""

    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """Fields that go along in OpenSend's row, and what the row could not say as the message did."""

    kept: dict[str, str]
    left_out: tuple[str, ...]
    """Name and reason, for the record. The stored message has them all."""


def recipients(envelope: Iterable[Address], reading: Reading) -> Recipients:
    """Sort the envelope by the header; an address that only the header names is not sent to."""
    envelope = tuple(envelope)
    if {shown.address for shown in reading.to}.issuperset(envelope):  # as almost each message has it
        to_all = envelope if "".join(envelope).isascii() else tuple(map(ascii_domain, envelope))
        return Recipients(to=to_all, cc=(), bcc=())
    in_to = {same_recipient(shown.address) for shown in reading.to}
    in_cc = {same_recipient(shown.address) for shown in reading.cc}
    to: list[Address] = []
    cc: list[Address] = []
    bcc: list[Address] = []
    for address in envelope:
        key = same_recipient(address)
        (to if key in in_to else cc if key in in_cc else bcc).append(ascii_domain(address))
    return Recipients(to=tuple(to), cc=tuple(cc), bcc=tuple(bcc))


def sender(mailbox: Mailbox) -> str:
    """Write From with its display name, in ASCII, or without the name where the column is too short for it."""
    address = ascii_domain(mailbox.address)
    if not mailbox.name or not address.isascii():
        return address
    shown = formataddr((mailbox.name, address))
    return shown if len(shown) <= FROM_CHARACTERS else address


def ascii_domain(address: Address) -> Address:
    """Spell the domain as Amazon SES takes it, which knows no SMTPUTF8."""
    if address.isascii():
        return address
    local, _, domain = address.rpartition("@")
    return address if domain.isascii() else Address(f"{local}@{normal_domain(domain) or domain}")


def text(reading: Reading) -> str:
    """Return the text; of a message that says nothing a line end, because SES refuses an empty body."""
    return reading.text if reading.text or reading.html or reading.attachments else _LINE_END


def headers(reading: Reading) -> Headers:
    """Sort out the fields that SES accepts and OpenSend's worker does not write itself; of repeated ones the first."""
    kept: dict[str, str] = {}
    left_out = [f"text in {label}: unknown, read as UTF-8 or windows-1252" for label in reading.unknown_charsets]
    for name, folded in reading.fields:
        if name in _WRITTEN_BY_THE_WORKER or name in _OF_ONE_HOP or name.startswith(_FAMILIES) or is_control(name):
            continue
        value, note = _fitted(name, folded.replace("\t", " "))
        if name in kept:
            left_out.append(f"{name}: repeated")
        elif not _NAME.fullmatch(name):
            left_out.append(f"{name[:_SHOWN_NAME]}: its name is longer than 126 characters")
        elif not _VALUE.fullmatch(value):
            left_out.append(f"{name}: {_why_not(value)}")
        elif len(kept) == _MOST and not reading.attachments:
            left_out.append(f"{name}: over {_MOST} fields")
        else:
            kept[name] = value
            left_out += [f"{name}: {note}"] if note else []
    return Headers(kept=kept, left_out=tuple(left_out[:_NOTED]))


def _fitted(name: str, value: str) -> tuple[str, str]:
    """Shorten References that are too long, and say so: the first id and the newest stay (RFC 5537, 3.4.4)."""
    if name != "references" or len(value) <= _VALUE_CHARACTERS:
        return value, ""
    ids = [one for one in value.replace("><", "> <").split(" ") if one]
    if not ids or not all(map(_ID.fullmatch, ids)):
        return value, ""
    newest, room = 0, _VALUE_CHARACTERS - len(ids[0])
    for one in reversed(ids[1:]):
        room -= len(one) + 1
        if room < 0:
            break
        newest += 1
    removed = len(ids) - 1 - newest
    if removed and newest < _NEVER_REMOVED:
        return value, ""
    kept = [ids[0], *ids[removed + 1 :]]
    return " ".join(kept), f"shortened, {len(kept)} of {len(ids)} ids kept" if removed else ""


def _why_not(value: str) -> str:
    if not value:
        return "empty"
    return f"longer than {_VALUE_CHARACTERS} characters" if len(value) > _VALUE_CHARACTERS else "not printable ASCII"
