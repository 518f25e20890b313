"""What the administrator's commands get from the database: one frozen dataclass per kind of row."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from opensend_milter.core.model import EmailId, KeyId, OnSuppressed, UserId

Permission = Literal["full_access", "sending_access"]
Reason = Literal["manual", "bounced", "complained"]
EmailStatus = Literal[
    "queued",
    "scheduled",
    "processing",
    "sent",
    "delivered",
    "bounced",
    "complained",
    "suppressed",
    "failed",
    "canceled",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key just made: the only time that its token is there."""

    id: KeyId
    token: str = field(repr=False)
    preview: str
    name: str
    user_id: UserId
    permission: Permission
    domain: str | None
    """Name of the domain that the key is bound to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """An API key as it is stored."""

    id: KeyId
    name: str
    user_id: UserId | None
    permission: str
    preview: str | None
    created_at: datetime
    last_used_at: datetime | None
    restricted: bool
    domain: str | None
    """None for a restricted key: its domain is gone, so it can send nothing."""
    on_suppressed: OnSuppressed | None
    """None: as the configuration says."""
    allowed_senders: list[str] | None
    """Addresses, or @domain; None: any."""
    allowed_recipients: list[str] | None
    networks: list[str] | None
    """None: from anywhere."""
    per_minute: int | None
    per_day: int | None
    expires_at: datetime | None
    expired: bool
    may_attach: bool
    may_html: bool
    may_bulk: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """What is to be different; None leaves a thing as it is; an empty text or list and 0 take it away."""

    on_suppressed: OnSuppressed | Literal[""] | None = None
    allowed_senders: list[str] | None = None
    allowed_recipients: list[str] | None = None
    networks: list[str] | None = None
    per_minute: int | None = None
    per_day: int | None = None
    expires_at: datetime | Literal[""] | None = None
    may_attach: bool | None = None
    may_html: bool | None = None
    may_bulk: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRow:
    """A secret that a key had before, and that is still good."""

    hash: str
    """The first characters of its SHA-256: all that is known of it."""
    replaced_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A key's new secret: the only time that it is there."""

    id: KeyId
    token: str = field(repr=False)
    preview: str
    older: list[SecretRow]
    """What is still good beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDetail:
    """All that is known of one key."""

    key: KeyRow
    sent_today: int | None
    """None: not counted, since there is no daily limit."""
    secrets: list[SecretRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRow:
    """A domain that a user may send from once it is verified."""

    id: str
    name: str
    user_id: UserId | None
    status: str
    created_at: datetime
    keys: int
    """Keys bound to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppressionRow:
    """An address that a user's mail must not reach."""

    user_id: UserId
    email: str
    reason: str
    suppressed_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailRow:
    """One line of a list of emails."""

    id: EmailId
    created_at: datetime
    status: str
    user_id: UserId | None
    queue_id: str | None
    sender: str
    recipients: list[str]
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailFields:
    """OpenSend's row of an email, without its contents."""

    id: EmailId
    created_at: datetime
    status: str
    user_id: UserId | None
    sender: str
    to: list[str]
    cc: list[str] | None
    bcc: list[str] | None
    reply_to: list[str] | None
    subject: str
    headers: dict[str, str] | None
    text_bytes: int
    html_bytes: int
    attachments: int
    tags: list[dict[str, str]] | None
    metadata: dict[str, str] | None
    scheduled_at: datetime | None
    sent_at: datetime | None
    retries: int
    last_attempted_at: datetime | None
    next_retry_at: datetime | None
    given_up_at: datetime | None
    last_error_code: str | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRow:
    """How a message came in."""

    received_at: datetime
    key_id: KeyId
    key_name: str | None
    """None: the key is revoked."""
    front_door: str
    queue_id: str
    client_address: str
    tls: str
    sender: str
    from_address: str
    recipients: list[str]
    message_id: str | None
    size_bytes: int
    kept_bytes: int
    sha256: str
    dropped: list[dict[str, str]] | None
    """Suppressed recipients that were left out."""
    left_out: list[str] | None
    """Header fields that OpenSend's row cannot carry."""
    repeats: int
    repeated_at: datetime | None
    provider_id: str | None
    """By what the provider knows it."""
    raw_dropped_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """Where a delivery stands."""

    state: str
    attempts: int
    not_before: datetime
    announce_at: datetime | None
    lease_until: datetime | None
    worker: str | None
    last_error: str | None
    courier: str | None
    """None: the configured one."""
    recipients: list[str] | None
    """Who is still to get it, where others have it."""
    uncertain_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """What was recorded of a recipient that fared differently from its message."""

    address: str
    outcome: str
    reason: str
    courier: str | None
    noted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientRow:
    """Where a recipient stands."""

    address: str
    status: str
    reason: str | None
    courier: str | None
    noted_at: datetime | None
    """None: nothing was heard of this one alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened to an email."""

    at: datetime
    type: str
    payload: object
    source_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalRow:
    """A message that was not taken."""

    ref: str | None
    """None: of before there were any."""
    refused_at: datetime
    rule: str
    code: int
    enhanced: str
    text: str
    front_door: str
    queue_id: str
    client_address: str
    key_id: str
    user_id: UserId | None
    sender: str
    from_domain: str | None
    recipients: list[str]
    message_id: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailDetail:
    """Everything known of one id: an email, or only refusals of that queue id or ref."""

    email: EmailFields | None
    submission: SubmissionRow | None
    job: JobRow | None
    recipients: list[RecipientRow]
    events: list[EventRow]
    refusals: list[RefusalRow]
