"""What Amazon SES says of a message, in both of its formats: event publishing and notifications."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from opensend_milter.core.feedback import (
    LONGEST_ID,
    Recipient,
    Report,
    ReportKind,
    ReportMalformed,
    addresses,
    email_id_of,
    items_of,
    mapping_of,
    text_of,
)
from opensend_milter.core.model import EmailId

ENTITY = "X-Entity-ID"
"""The tag, and the header field, that names the email."""
GREETING = "Successfully validated SNS topic"
"""What SES writes, in plain text, to a topic that it was just told of."""
_KINDS: Mapping[str, ReportKind] = {
    "Send": "sent",
    "Delivery": "delivered",
    "Bounce": "bounced",
    "Complaint": "complained",
    "DeliveryDelay": "delivery_delayed",
    "Open": "opened",
    "Click": "clicked",
    "Reject": "failed",
    "RenderingFailure": "failed",
    "Rendering Failure": "failed",
}
_SECTIONS = {"DeliveryDelay": "deliveryDelay", "RenderingFailure": "failure", "Rendering Failure": "failure"}
_RECIPIENTS = ("bouncedRecipients", "complainedRecipients", "delayedRecipients", "recipients")
_DETAILS = (
    "bounceType",
    "bounceSubType",
    "complaintSubType",
    "complaintFeedbackType",
    "delayType",
    "feedbackId",
    "ipAddress",
    "userAgent",
    "link",
)
NO_COMPLAINT = frozenset({"not-spam", "auth-failure"})
"""Feedback types (RFC 5965, 7.3; RFC 6591) of a recipient who has nothing against the mail."""


def parsed(text: str | bytes) -> Mapping[str, object]:
    """Read a JSON object; raise ReportMalformed where there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ReportMalformed("no JSON object")
    return found


def ses_report(text: str, source_id: str = "") -> Report | None:
    """Read an event; None where it is of a kind that changes nothing. Raise ReportMalformed where it is none.

    Without a `source_id` of who brought it, what it says is its name.
    """
    if text.startswith(GREETING):
        return None
    event = parsed(text)
    name = text_of(event.get("eventType") or event.get("notificationType"))
    if not name:
        raise ReportMalformed("neither eventType nor notificationType")
    kind = _KINDS.get(name)
    if kind is None:
        return None
    mail = mapping_of(event.get("mail"))
    provider_id = text_of(mail.get("messageId"))[:LONGEST_ID]
    if not provider_id:
        raise ReportMalformed("mail.messageId is missing")
    section = mapping_of(event.get(_SECTIONS.get(name, name.lower())))
    if kind == "complained" and section.get("complaintFeedbackType") in NO_COMPLAINT:
        return None
    return Report(
        kind=kind,
        source_id=text_of(source_id)[:LONGEST_ID] or _digest(text),
        email_id=_tagged(mail),
        provider_id=provider_id,
        claimed_id=_claimed(mail),
        recipients=tuple(_recipients(section)),
        # Undetermined is what SES says of an answer that it could not read: no proof against the address.
        permanent=section.get("bounceType") == "Permanent",
        reason=text_of(section.get("smtpResponse") or section.get("reason") or section.get("errorMessage")),
        via="ses",
        at=text_of(section.get("timestamp") or mail.get("timestamp")),
        details={name: found for name in _DETAILS if (found := text_of(section.get(name)))},
    )


def _digest(text: str) -> str:
    return "ses:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _tagged(mail: Mapping[str, object]) -> EmailId | None:
    found = items_of(mapping_of(mail.get("tags")).get(ENTITY))
    return email_id_of(found[0]) if found else None


def _claimed(mail: Mapping[str, object]) -> EmailId | None:
    """Find the field that OpenSend puts into a message's header."""
    for field in map(mapping_of, items_of(mail.get("headers"))):
        if text_of(field.get("name")).lower() == ENTITY.lower():
            return email_id_of(field.get("value"))
    common = {name.lower(): value for name, value in mapping_of(mail.get("commonHeaders")).items()}
    return email_id_of(common.get(ENTITY.lower()))


def _recipients(section: Mapping[str, object]) -> Iterator[Recipient]:
    for name in _RECIPIENTS:
        for written in items_of(section.get(name)):
            found = {"emailAddress": written} if isinstance(written, str) else mapping_of(written)
            yield Recipient(
                names=addresses(text_of(found.get("emailAddress"))),
                status=text_of(found.get("status")),
                diagnostic=text_of(found.get("diagnosticCode")),
            )
