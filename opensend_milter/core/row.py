"""What OpenSend's `emails` row says of a message: who is shown how, and which header fields go along."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formataddr

from opensend_milter.core.address import same_recipient
from opensend_milter.core.model import Address, Mailbox, Reading

FROM_CHARACTERS = 512
_NAME = re.compile(r"[!-9;-~]{1,126}")
_VALUE = re.compile(r"[ -~]{1,870}")
"""Amazon SES: MessageHeader."""

_WRITTEN_BY_THE_WORKER = frozenset({
    "from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version", "x-entity-id",
})  # fmt: skip
_OF_ONE_HOP = frozenset({
    "received", "return-path", "delivered-to", "sender", "dkim-signature", "domainkey-signature",
    "authentication-results", "x-originating-ip",
})  # fmt: skip
_FAMILIES = ("content-", "resent-", "arc-", "x-opensend-", "x-ses-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipients:
    """Envelope recipients by how the header shows them; one in neither To nor Cc is a Bcc."""

    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]


def recipients(envelope: Iterable[Address], reading: Reading) -> Recipients:
    """Sort the envelope by the header; an address that only the header names is not sent to."""
    in_to = {same_recipient(shown.address) for shown in reading.to}
    in_cc = {same_recipient(shown.address) for shown in reading.cc}
    to: list[Address] = []
    cc: list[Address] = []
    bcc: list[Address] = []
    for address in envelope:
        key = same_recipient(address)
        (to if key in in_to else cc if key in in_cc else bcc).append(address)
    return Recipients(to=tuple(to), cc=tuple(cc), bcc=tuple(bcc))


def sender(mailbox: Mailbox) -> str:
    """Write From with its display name, in ASCII, or without the name where the column is too short for it."""
    if not mailbox.name or not mailbox.address.isascii():
        return mailbox.address
    shown = formataddr((mailbox.name, mailbox.address))
    return shown if len(shown) <= FROM_CHARACTERS else mailbox.address


def headers(reading: Reading) -> dict[str, str]:
    """Return the fields that SES accepts and OpenSend's worker does not write itself; of repeated ones the first."""
    kept: dict[str, str] = {}
    for name, value in reading.fields:
        if name in _WRITTEN_BY_THE_WORKER or name in _OF_ONE_HOP or name.startswith(_FAMILIES):
            continue
        if _NAME.fullmatch(name) and _VALUE.fullmatch(value):
            kept.setdefault(name, value)
    return kept
