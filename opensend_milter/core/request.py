"""One JSON object of either dialect -> what to send, or every field that is wrong with it.

`rele`: /v1/send as http-smtp-rele has it, and what we add; `resend`: /emails as OpenSend and Resend have it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from opensend_milter.core.attachments import Dialect, File, read_files
from opensend_milter.core.control import (
    IDEMPOTENCY_KEY,
    METADATA,
    MOST_METADATA,
    MOST_TAGS,
    PREFIX,
    SEND_AT,
    TAG,
    ControlFieldError,
    wishes,
)
from opensend_milter.core.fields import MOST_ERRORS, NAME_CHARACTERS, UNSAFE, FieldError, Fields, shown
from opensend_milter.core.model import Limits, Mailbox
from opensend_milter.core.strict_json import parse_json

__all__ = ["Dialect", "FieldError", "File", "RequestLimits", "SendRequest", "parse_json", "read_send", "read_time"]

SUBJECT_CHARACTERS = 1_024
MOST_HEADERS = 50
_HEADER_NAME = re.compile(r"[!-9;-~]{1,126}")
_HEADER_CHARACTERS = 870
"""As Amazon SES. With the longest name that is 998 octets: a value without a space still fits into one line."""
_HEADER_VALUE = re.compile(rf"[ -~]{{1,{_HEADER_CHARACTERS}}}")
_METADATA_CHARACTERS = 1_000
_MINUTES = re.compile(r"(?<=[0-9] )min(s?)\Z")
"""Resend's own example is `in 1 min`."""

OUR_FIELDS = frozenset({
    "from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version", "received",
    "return-path", "delivered-to", "dkim-signature", "domainkey-signature", "authentication-results",
    "x-originating-ip", "x-entity-id", *IDEMPOTENCY_KEY,
})  # fmt: skip
OUR_FAMILIES = ("content-", "resent-", "arc-", "x-ses-", PREFIX)
_NOT_OFFERED = ("template", "topic_id", "topicId", "react")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds of a request; those of the message that it becomes hold as well."""

    max_recipients: int = Limits().max_recipients
    max_attachment_bytes: int = Limits().max_attachment_bytes
    """Sum of the attachments, as base64."""
    max_attachments: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRequest:
    """What to send: every field checked, so that it can be written."""

    sender: Mailbox | None = None
    """None: the configured one."""
    from_name: str = ""
    """How the sender is called, whoever it is."""
    to: tuple[Mailbox, ...] = ()
    cc: tuple[Mailbox, ...] = ()
    bcc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: tuple[File, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    send_at: datetime | timedelta | None = None
    idempotency_key: str | None = None
    """From the HTTP header; no field of the JSON object."""


def read_send(payload: object, dialect: Dialect, limits: RequestLimits) -> SendRequest | list[FieldError]:
    """Read a request to send one message, or return all that is wrong with it."""
    if not isinstance(payload, dict):
        return [FieldError(field="", message="expected a JSON object", code="wrong_type")]
    errors: list[FieldError] = []
    fields = Fields(payload, errors)
    request = _rele(fields, limits) if dialect == "rele" else _resend(fields, limits)
    if (count := len(request.to) + len(request.cc) + len(request.bcc)) > limits.max_recipients:
        fields.fault("to", f"{count} recipients are over the limit of {limits.max_recipients}", "too_many")
    fields.refuse_the_rest()
    return errors[:MOST_ERRORS] or request


def read_time(payload: object, email_id: str) -> datetime | timedelta | list[FieldError]:
    """Read a request to send an email at another time, or return all that is wrong with it."""
    if not isinstance(payload, dict):
        return [FieldError(field="", message="expected a JSON object", code="wrong_type")]
    errors: list[FieldError] = []
    fields = Fields(payload, errors)
    # Resend's package for Python says again what the path says.
    if fields.string("id") not in {None, email_id}:
        fields.fault("id", "another than that of the path", "invalid")
    moment = _moment(fields, "scheduled_at", "scheduledAt", required=True)
    fields.refuse_the_rest()
    return errors[:MOST_ERRORS] if errors or moment is None else moment


def _rele(fields: Fields, limits: RequestLimits) -> SendRequest:
    from_name = fields.line("from_name", NAME_CHARACTERS) or ""
    return SendRequest(
        sender=fields.mailbox("from"),
        from_name=from_name,
        to=fields.mailboxes("to", at_most=limits.max_recipients, required=True),
        cc=fields.mailboxes("cc", at_most=limits.max_recipients),
        bcc=fields.mailboxes("bcc", at_most=limits.max_recipients),
        reply_to=fields.mailboxes("reply_to", at_most=limits.max_recipients),
        subject=fields.line("subject", SUBJECT_CHARACTERS, required=True) or "",
        text=fields.body("body", required=True),
        html=fields.body("body_html"),
        attachments=_files(fields, "rele", limits),
        headers=_headers(fields),
        tags=_tags(fields),
        metadata=_metadata(fields.take("metadata")),
        send_at=_moment(fields, "send_at"),
    )


def _resend(fields: Fields, limits: RequestLimits) -> SendRequest:
    fields.refuse(*_NOT_OFFERED)
    if not fields.has("text") and not fields.has("html"):
        fields.fault("text", "expected text, html, or both", "required")
    return SendRequest(
        sender=fields.mailbox("from", required=True),
        to=fields.mailboxes("to", at_most=limits.max_recipients, required=True),
        cc=fields.mailboxes("cc", at_most=limits.max_recipients),
        bcc=fields.mailboxes("bcc", at_most=limits.max_recipients),
        reply_to=fields.mailboxes("reply_to", "replyTo", at_most=limits.max_recipients),
        subject=fields.line("subject", SUBJECT_CHARACTERS, required=True) or "",
        text=fields.body("text"),
        html=fields.body("html"),
        attachments=_files(fields, "resend", limits),
        headers=_headers(fields),
        tags=_tags(fields),
        send_at=_moment(fields, "scheduled_at", "scheduledAt"),
    )


def _files(fields: Fields, dialect: Dialect, limits: RequestLimits) -> tuple[File, ...]:
    return read_files(fields, dialect, at_most=limits.max_attachments, max_bytes=limits.max_attachment_bytes)


def _headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    value = fields.take("headers")
    if value is None:
        return ()
    if not isinstance(value, dict):
        fields.fault("headers", "expected an object of names and strings", "wrong_type")
        return ()
    if len(value) > MOST_HEADERS:
        fields.fault("headers", f"{len(value)} are over the limit of {MOST_HEADERS}", "too_many")
        return ()
    found: dict[str, tuple[str, str]] = {}
    for name, text in value.items():
        here = f"headers.{shown(name)}"
        if name.lower() in found:
            fields.fault(here, "given twice, in another case", "invalid")
        elif fault := _header_name_fault(name):
            fields.fault(here, fault, "invalid")
        elif not isinstance(text, str):
            fields.fault(here, "expected a string", "wrong_type")
        elif not _HEADER_VALUE.fullmatch(text.strip(" ")):
            fields.fault(here, f"a value is 1 to {_HEADER_CHARACTERS} printable ASCII characters", "invalid")
        else:
            found[name.lower()] = name, text.strip(" ")
    return tuple(found.values())


def _header_name_fault(name: str) -> str | None:
    lowered = name.lower()
    if not _HEADER_NAME.fullmatch(name):
        return "a name is 1 to 126 printable ASCII characters, without space and colon"
    if lowered in OUR_FIELDS or lowered.startswith(OUR_FAMILIES):
        return "this header field is written by us; most have a field of the request"
    return None


def _tags(fields: Fields) -> tuple[tuple[str, str], ...]:
    value = fields.take("tags")
    if isinstance(value, dict):
        value = [{"name": name, "value": text} for name, text in value.items()]
    if value is None:
        return ()
    if not isinstance(value, list):
        fields.fault("tags", "expected a list of objects with name and value", "wrong_type")
        return ()
    if len(value) > MOST_TAGS:
        fields.fault("tags", f"{len(value)} are over the limit of {MOST_TAGS}", "too_many")
        return ()
    found: list[tuple[str, str]] = []
    for index, one in enumerate(value):
        if tag := _tag(one):
            found.append(tag)
        else:
            text = "expected name and value of letters, digits, _ and -, at most 256 each; only a value may be empty"
            fields.fault(f"tags[{index}]", text, "invalid")
    return tuple(found)


def _tag(value: object) -> tuple[str, str] | None:
    """Read a tag as the control field will be read."""
    if not isinstance(value, dict) or value.keys() != {"name", "value"}:
        return None
    name, text = value["name"], value["value"]
    if isinstance(name, str) and isinstance(text, str):
        with suppress(ControlFieldError):
            if wishes([(TAG, f"{name}={text}")]).tags == ((name, text),):
                return name, text
    return None


def _metadata(value: object) -> dict[str, str]:
    """Keep what can be kept: http-smtp-rele takes any JSON there and ignores it, so nothing of it is refused."""
    if not isinstance(value, dict) or len(value) > MOST_METADATA:
        return {}
    found: dict[str, str] = {}
    for name, scalar in value.items():
        if not isinstance(scalar, (str, int, float)) or name.lower() in found or not _is_metadata_name(name.lower()):
            return {}
        text = scalar.strip() if isinstance(scalar, str) else json.dumps(scalar)
        if UNSAFE.search(text) or len(text) > _METADATA_CHARACTERS:
            return {}
        found[name.lower()] = text
    return found


def _is_metadata_name(name: str) -> bool:
    try:
        wishes([(METADATA + name, "")])
    except ControlFieldError:
        return False
    return True


def _moment(fields: Fields, *names: str, required: bool = False) -> datetime | timedelta | None:
    text = fields.string(*names, required=required)
    if text is not None:
        with suppress(ControlFieldError):
            return wishes([(SEND_AT, _MINUTES.sub(r"minute\1", text))]).send_at
        example = "2026-01-31T08:00:00+01:00"
        fields.fault(names[0], f"expected a time with its zone, as {example}, or a delay, as: in 10 minutes", "invalid")
    return None
