"""What a key may learn of its own messages: states in http-smtp-rele's words, and what the next hop said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from opensend_milter.core import crockford
from opensend_milter.core.fates import Fate
from opensend_milter.core.model import EmailId, KeyId
from opensend_milter.core.next_hop import hop_reply

SubmissionState = Literal["received", "smtp_submission_started", "smtp_accepted", "smtp_failed", "rejected", "canceled"]
FINAL: frozenset[SubmissionState] = frozenset({"smtp_accepted", "smtp_failed", "rejected", "canceled"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OF_A_REFUSAL = 8
"""The version of UUIDs that are laid out as somebody likes (RFC 9562, 5.8): no email has such an id."""
_REFUSALS = (1 << 62) - 1
_REQUEST_ID = re.compile(rf"req_([0-7][{crockford.LETTERS}]{{25}})")
_STATES: dict[str, SubmissionState] = {
    "queued": "received",
    "scheduled": "received",
    "processing": "smtp_submission_started",
    "sent": "smtp_accepted",
    "delivered": "smtp_accepted",
    "bounced": "smtp_accepted",
    "complained": "smtp_accepted",
    "failed": "smtp_failed",
    "suppressed": "rejected",
    "canceled": "canceled",
    "cancelled": "canceled",
}
_QUEUED_AS = re.compile(r"queued (?:as|mail) ([A-Za-z0-9]{5,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose request it is, and what is asked before any message."""

    key_id: KeyId
    networks: tuple[str, ...] | None
    """From where the key may be used; None: from anywhere."""
    may_bulk: bool
    has_full_access: bool
    """It may read what its user has sent by other keys, and change it; what emails say is for such a key only."""
    token_hash: str
    """Of the secret that was shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One message of a key."""

    email_id: EmailId
    status: str
    """Of the email, in OpenSend's words."""
    attempts: int
    is_uncertain: bool
    created_at: datetime
    updated_at: datetime
    scheduled_at: datetime | None
    fates: tuple[Fate, ...]
    """Of all recipients, those who were left out too."""
    message_id: str | None
    queue_id: str
    provider_id: str | None
    reply: str
    """What the next hop said last, empty where it was not asked."""
    never_left: bool = False
    """It has bounced, and nobody got it."""

    @property
    def recipients(self) -> tuple[str, ...]:
        """Return whom it goes to."""
        return tuple(fate.email for fate in self.fates if fate.status != "suppressed")

    @property
    def state(self) -> SubmissionState:
        """Return the state in http-smtp-rele's words."""
        state = "smtp_failed" if self.never_left else _STATES.get(self.status, "received")
        return "smtp_submission_started" if state == "received" and self.attempts else state


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A message of a key that was not taken."""

    id: int
    queue_id: str
    """Of a request over HTTP its id."""
    rule: str
    code: int
    enhanced: str
    text: str
    refused_at: datetime
    recipients: tuple[str, ...]
    ref: str | None
    """None: of before there were any."""

    @property
    def request_id(self) -> str:
        """Return the id of the request; where there was none, one that says when it was, and which refusal it is."""
        if _REQUEST_ID.fullmatch(self.queue_id):
            return self.queue_id
        milliseconds = (self.refused_at - _EPOCH) // timedelta(milliseconds=1)
        return _spelled(milliseconds << 80 | _OF_A_REFUSAL << 76 | 0b10 << 62 | self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which of a key's messages are listed."""

    statuses: Sequence[str] | None = None
    """Of the email, in OpenSend's words; None: any."""
    tried: bool | None = None
    """Whether a delivery was attempted; None: either."""
    rejected: bool = True
    """Those that were not taken, too."""
    since: datetime | None = None
    bulk_id: str | None = None
    before: EmailId | None = None
    """Only what comes after this in the list."""
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list."""

    items: tuple[Submission | Rejection, ...]
    has_more: bool


def request_id(email_id: EmailId) -> str:
    """Spell an email's id as a request's: `req_` and a ULID, which is the same 128 bits."""
    return _spelled(UUID(email_id).int)


def refusal_of_request(email_id: EmailId) -> int | None:
    """Return which refusal the id names that `Rejection.request_id` made for want of another; None: it is another."""
    number = UUID(email_id)
    return number.int & _REFUSALS if number.version == _OF_A_REFUSAL else None


def _spelled(number: int) -> str:
    return f"req_{crockford.spelled(number, 26)}"


def email_of_request(text: str) -> EmailId | None:
    """Return the email that a request's id, or its own, names; None where the text is neither."""
    if match := _REQUEST_ID.fullmatch(text.strip()):
        return EmailId(str(UUID(int=crockford.number_of(match[1]))))
    try:
        return EmailId(str(UUID(text)))
    except ValueError:
        return None


def reply_codes(reply: str) -> tuple[int | None, str | None, str | None]:
    """Find code, enhanced code and the next hop's queue id in what it said."""
    found, queued = hop_reply(reply), _QUEUED_AS.search(reply)
    code, enhanced = (found.code, found.enhanced or None) if found else (None, None)
    return code, enhanced, queued[1] if queued else None


def domains_of(recipients: Sequence[str]) -> list[str]:
    """Return the domains of recipients, each once, in order."""
    return list(dict.fromkeys(recipient.rpartition("@")[2].lower() for recipient in recipients))
