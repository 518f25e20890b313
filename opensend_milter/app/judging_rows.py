"""What our rules would have said of mail that OpenSend took: its rows, as the messages that they may have been."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from opensend_milter.adapters.admin.switching import BoundKey, Domain, SentRow, SwitchingReader
from opensend_milter.core.address import (
    domain_of,
    envelope_address,
    listings,
    normal_domain,
    same_recipient,
    unicode_domain,
)
from opensend_milter.core.message import read
from opensend_milter.core.model import (
    Accept,
    Address,
    Attachment,
    EmailId,
    Envelope,
    Facts,
    Identity,
    KeyFacts,
    KeyId,
    Message,
    Reading,
    Refuse,
    Session,
    UserId,
    Verdict,
    refuse,
)
from opensend_milter.core.policy import Policy
from opensend_milter.core.rules import Rule
from opensend_milter.core.transfer import Base64

MOST_ROWS = 10_000
CHUNK = 1_000
EXAMPLES = 5
_UNNAMED = Identity(content_digest=b"", fingerprint=None, idempotency_key=None)
"""A row is its own repetition: that rule is not asked."""


@dataclass(slots=True)
class Some:
    """So many rows, and the ids of a few."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, row_id: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.ids) < EXAMPLES:
            self.ids.append(row_id)


@dataclass(slots=True)
class Tally:
    """What our rules say of the newest rows; each counts once, by the first rule that it meets."""

    rows: int = 0
    refused: dict[Rule, Some] = field(default_factory=dict)
    left_out: Some = field(default_factory=Some)
    """Would be taken, but not for a suppressed recipient."""
    unreadable: Some = field(default_factory=Some)
    unverified: Counter[tuple[str, str]] = field(default_factory=Counter)
    """User and domain of From, where that is no verified domain of the user."""
    users: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Draft:
    row: SentRow
    message: Message
    reading: Reading | Refuse

    @property
    def domain(self) -> Domain | None:
        """Of From, as the database is asked for it."""
        if isinstance(self.reading, Refuse) or self.row.user_id is None:
            return None
        return domain_to_ask(self.row.user_id, domain_of(self.reading.sender.address))


def tally(reader: SwitchingReader, policy: Policy) -> Tally:
    """Judge the newest rows."""
    counted = Tally()
    # One more than there may be is enough to be too many.
    rows = reader.newest(rows=MOST_ROWS, recipients=policy.limits.max_recipients + 1)
    for start in range(0, len(rows), CHUNK):
        _count(counted, reader, policy, rows[start : start + CHUNK])
    return counted


def _count(counted: Tally, reader: SwitchingReader, policy: Policy, rows: Sequence[SentRow]) -> None:
    counted.rows += len(rows)
    counted.users.update(row.user_id for row in rows if row.user_id is not None)
    drafts: list[_Draft] = []
    for row in rows:
        draft = _draft(row, policy)
        if draft is None:
            counted.unreadable.add(row.id)
        else:
            drafts.append(draft)
    verified = reader.verified(sorted({domain for draft in drafts if (domain := draft.domain)}))
    suppressed = _suppressed(reader, drafts)
    for place, draft in enumerate(drafts):
        is_verified = draft.domain is not None and draft.domain[:2] in verified
        if draft.domain and not is_verified:
            counted.unverified[draft.domain[:2]] += 1
        verdict = _verdict(policy, draft, verified=is_verified, suppressed=suppressed.get(place, {}))
        if isinstance(verdict, Refuse):
            counted.refused.setdefault(verdict.rule, Some()).add(draft.row.id)
        elif isinstance(verdict, Accept) and verdict.dropped:
            counted.left_out.add(draft.row.id)


def _draft(row: SentRow, policy: Policy) -> _Draft | None:
    """Make a message of a row, or nothing where its values are odd."""
    recipients = [one for one in row.recipients or () if one is not None]
    reply_to = [one for one in row.reply_to or () if one is not None]
    if not recipients or row.reply_to is None or len(recipients) + len(reply_to) < _listed(row):
        return None
    fields = {"From": row.sender, **({"Reply-To": ", ".join(reply_to)} if reply_to else {})}
    header = "".join(f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in fields.items())
    reading = read(header.encode() + b"\r\n", policy.limits)
    if isinstance(reading, Reading) and row.attachment_bytes:
        reading = dataclasses.replace(reading, attachments=(_attachment(row.attachment_bytes),))
    return _Draft(row, _message(recipients, row.body_bytes + row.attachment_bytes), reading)


def _listed(row: SentRow) -> int:
    return len(row.recipients or ()) + len(row.reply_to or ())


def _attachment(octets: int) -> Attachment:
    """Make an attachment of which only the size is known."""
    content = Base64(raw=b"", start=0, end=octets, encoding="base64", as_sent=True)
    return Attachment(filename="", content_type="", content_id=None, content=content)


def _message(recipients: Sequence[str], size: int) -> Message:
    found = [envelope_address(one) for one in recipients]
    envelope = {same_recipient(address): address for address in found if address is not None}
    # As the milter says it at RCPT.
    fault = refuse(Rule.RECIPIENT_MALFORMED, "a recipient is not an address")
    return Message(
        id=EmailId(""),
        session=Session(key_id=KeyId(""), front_door="smtp", client_address="", tls=""),
        envelope=Envelope(sender="", recipients=tuple(envelope.values())),
        queue_id="",
        received_at=datetime.now(UTC),
        raw=b"",
        size=size,
        sha256=b"",
        fault=fault if None in found else None,
    )


def _suppressed(reader: SwitchingReader, drafts: Sequence[_Draft]) -> dict[int, dict[Address, str]]:
    found = reader.suppressed(
        [
            (place, draft.row.id, draft.row.user_id, recipient, spelling)
            for place, draft in enumerate(drafts)
            if draft.row.user_id is not None
            for recipient in draft.message.envelope.recipients
            for spelling in listings(recipient)
        ]
    )
    return {place: {Address(address): reason for address, reason in listed} for place, listed in found.items()}


def _verdict(policy: Policy, draft: _Draft, *, verified: bool, suppressed: dict[Address, str]) -> Verdict:
    """Ask in the order in which a message is asked: at the door, at its size, of its header, of the database."""
    if refusal := draft.message.fault or policy.refuse_size(draft.message.size):
        return refusal
    if isinstance(draft.reading, Refuse):
        return draft.reading
    user_id = None if draft.row.user_id is None else UserId(draft.row.user_id)
    key = KeyFacts(user_id=user_id, restricted=False, restricted_domain=None)
    facts = Facts(
        now=draft.message.received_at, key=key, sender_domain_verified=verified, suppressed=tuple(suppressed.items())
    )
    return policy.judge(draft.message, draft.reading, _UNNAMED, facts)


def domain_to_ask(user_id: str, shown: str | None) -> Domain | None:
    """Return a user's domain as the database is asked for it; None where it is no domain name."""
    name = normal_domain(shown or "")
    return (user_id, name, unicode_domain(name)) if name else None


def refusal_of_key(policy: Policy, key: BoundKey, *, verified: bool) -> Refuse | None:
    """Judge a message that a key sends from the domain that it is bound to."""
    header = f"From: postmaster@{key.domain or 'its.domain.invalid'}\r\n\r\n"
    reading = read(header.encode(), policy.limits)
    if isinstance(reading, Refuse):
        return reading
    known = KeyFacts(user_id=UserId(key.user_id), restricted=True, restricted_domain=key.domain)
    message = _message(["postmaster@its.domain.invalid"], 0)
    facts = Facts(now=message.received_at, key=known, sender_domain_verified=verified, suppressed=())
    verdict = policy.judge(message, reading, _UNNAMED, facts)
    return verdict if isinstance(verdict, Refuse) else None
