"""Webhooks as the Standard Webhooks specification has them: secrets, signatures, bodies, and when to try again."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, NewType

from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived
from opensend_milter.core.webhook_data import Mail, data_of, moment, written

WebhookId = NewType("WebhookId", str)
DeliveryId = NewType("DeliveryId", str)
EventId = NewType("EventId", str)

EVENT_TYPES = (
    "email.sent",
    "email.delivered",
    "email.bounced",
    "email.complained",
    "email.delivery_delayed",
    "email.delayed",
    "email.opened",
    "email.clicked",
    "email.failed",
    "email.suppressed",
    "email.scheduled",
)
OVERLAP = timedelta(hours=24)
"""So long after a change both secrets sign."""
PAUSES_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
"""As the specification suggests."""
LATER_BY = 0.2
"""A receiver that was down is not met by all at once."""
LONGEST_ASKED_S = 36_000.0
KEPT_CHARACTERS = 1_000
_GONE = 410
_ASKS_FOR_TIME = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Who is to be told."""

    id: WebhookId
    url: str
    generation: int = 1
    """How often its secret was made, the first time included."""
    rotated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What there is to tell."""

    id: EventId
    type: str
    """With its noun: `email.sent`."""
    at: datetime
    email_id: EmailId | None
    payload: Mapping[str, object]
    mail: Mail | None = None
    """None: an event of a version that did not tell of the message, or of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """One event on its way to one webhook, claimed."""

    id: DeliveryId
    attempt: int
    """This one included."""
    webhook: Webhook
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call."""

    code: int | None
    """None: there was no answer."""
    text: str
    """The receiver's words, or why there is no answer."""
    retry_after: str = ""

    @property
    def is_yes(self) -> bool:
        return self.code is not None and 200 <= self.code < 300  # noqa: PLR2004  # RFC 9110, 15.3


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of the delivery."""

    status: Literal["success", "pending", "dead_letter"]
    pause_s: float | None = None
    """Until the next attempt."""


def secret_of(signing: bytes, webhook_id: WebhookId, generation: int) -> str:
    """Return the secret as its receiver enters it."""
    return "whsec_" + b64encode(_key(signing, webhook_id, generation)).decode()


def _key(signing: bytes, webhook_id: WebhookId, generation: int) -> bytes:
    return derived(signing, "webhook", f"{webhook_id}:{generation}")


def body_of(event: Event) -> bytes:
    """Write an event as OpenSend does; each attempt sends the same bytes."""
    told = {"id": event.id, "type": event.type, "created_at": moment(event.at)}
    if event.mail is None:
        return json.dumps(
            {**told, "data": {**event.payload, "email_id": event.email_id}}, separators=(",", ":")
        ).encode()
    return written(told, data_of(event.type.removeprefix("email."), event.email_id, event.payload, event.mail))


def headers_of(webhook: Webhook, event_id: EventId, body: bytes, *, signing: bytes, now: datetime) -> dict[str, str]:
    """Sign a body; after a change of secret with both of them. OpenSend's receivers look for Svix's names."""
    generations = [webhook.generation]
    if webhook.rotated_at and webhook.generation > 1 and now - webhook.rotated_at < OVERLAP:
        generations.append(webhook.generation - 1)
    at = str(int(now.timestamp()))
    signed = f"{event_id}.{at}.".encode() + body
    marks = [_signature(_key(signing, webhook.id, generation), signed) for generation in generations]
    values = {"id": event_id, "timestamp": at, "signature": " ".join(marks)}
    return {f"{family}-{name}": value for family in ("webhook", "svix") for name, value in values.items()}


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def fate_of(answer: Answer, attempt: int, *, max_attempts: int, jitter: float, now: datetime) -> Fate:
    """Decide after an attempt; `jitter` is from 0 to 1."""
    if answer.is_yes:
        return Fate("success")
    if answer.code == _GONE or attempt >= max_attempts:
        return Fate("dead_letter")
    asked_s = asked_pause_s(answer.retry_after, now) if answer.code in _ASKS_FOR_TIME else 0.0
    pause_s = PAUSES_S[min(max(attempt, 1), len(PAUSES_S)) - 1] * (1 + LATER_BY * jitter)
    return Fate("pending", max(pause_s, asked_s))


def asked_pause_s(retry_after: str, now: datetime) -> float:
    """Read Retry-After, seconds or a date (RFC 9110, 10.2.3); 0 where it says nothing."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # A number of a thousand digits is no float.
        return LONGEST_ASKED_S if len(text) > len(str(int(LONGEST_ASKED_S))) else min(float(text), LONGEST_ASKED_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    asked_s = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(asked_s, 0.0), LONGEST_ASKED_S)


def kept(text: str) -> str:
    """Cut a receiver's text to what is stored, and make it one that Postgres takes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")[:KEPT_CHARACTERS]


def event_types(names: Sequence[str]) -> list[str]:
    """Return event types as we write them, all where none is named; raise UsageError where there is none such."""
    wanted = [name.strip().lower() for name in names if name.strip()]
    full = list(dict.fromkeys(name if "." in name else f"email.{name}" for name in wanted))
    if unknown := [name for name in full if name not in EVENT_TYPES]:
        raise UsageError(f"no event type {', '.join(unknown)}; there are: {', '.join(EVENT_TYPES)}")
    return full or list(EVENT_TYPES)
