"""What each field of a request or an answer means: a line that the OpenAPI document and its page have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from opensend_milter.servers.web.openapi_fields import Schema

_MEANINGS: Mapping[str, str] = {
    # Of what is sent.
    "from": "who it is from; its domain is a verified one of the key's user",
    "from_name": "goes before the name in from",
    "to": "who gets it",
    "cc": "who gets a copy; to, cc and bcc together are bounded",
    "bcc": "who gets a copy that no other recipient sees",
    "reply_to": "where answers go",
    "Send.subject": "not blank",
    "Email.subject": "not blank",
    "body": "the text",
    "body_html": "the same as HTML",
    "Email.text": "the text; text or html is needed",
    "Email.html": "the same as HTML; text or html is needed",
    "headers": "further header fields, by name; those that say who, when and how are ours",
    "tags": "names and values that are kept with it, and shown with it again",
    "attachments": "files",
    "metadata": "what is kept with it and never sent",
    "send_at": "when it is sent, with a zone, or a delay as: in 10 minutes; within 30 days",
    "scheduled_at": "when it is sent, where that is not at once",
    "filename": "with its ending, without a path",
    "content_type": "as: application/pdf",
    "content_id": 'by what HTML shows it, as: <img src="cid:logo">',
    "File.data": "in base64",
    "content": "in base64, or as a list of octets",
    "Bulk.messages": "each is judged by itself",
    # Of what is answered.
    "id": "of the message",
    "Key.id": "of the key",
    "request_id": "of the request: names the message too",
    "bulk_request_id": "of the whole list: lists its messages later",
    "total": "how many were handed in",
    "accepted": "how many were taken",
    "rejected": "how many were not",
    "results": "one for each, in order",
    "index": "its place in the list, from 0",
    "message_id": "the header field Message-ID",
    "queue_id": "of the mail server that took it in",
    "smtp": "what the next hop said last",
    "smtp.queue_id": "of the next hop",
    "provider_id": "by what a provider knows it",
    "Submission.status": "where it stands",
    "Message.status": "where it stands",
    "messages.status": "where it stands",
    "recipients.status": "where it stands for this one",
    "code": "the reason, as a word for programs",
    "smtp.code": "the next hop's answer",
    "enhanced_code": "the next hop's answer, as: 5.1.1",
    "smtp.reply": "the next hop's words",
    "ref": "by what the record of a refusal is found",
    "message": "the reason, as a sentence for people",
    "field": "the field that is wrong, as: to[1]",
    "errors": "all that is wrong, not the first only",
    "retryable": "whether the same request may be made again",
    "statusCode": "as in the answer's first line",
    "Error.name": "what Resend calls it",
    "submission": "what became of it, where `wait` was asked for",
    "delivery": "what is known since the next hop has it: delivered, bounced, complained",
    "uncertain": "an attempt broke off: nobody knows whether the next hop has it",
    "attempts": "how often it was tried",
    "recipient_domains": "where its recipients are",
    "recipient_count": "how many recipients it has",
    "recipients": "where each recipient stands",
    "messages.recipients": "of the envelope, those who were left out too",
    "email": "the address",
    "recipients.reason": "why, in the words of whoever said so",
    "created_at": "when it was taken",
    "updated_at": "when something happened to it last",
    "sent_at": "when the next hop took it",
    "expires_at": "always null here",
    "last_event": "in Resend's words",
    "next": "goes into `before` of the next request; not there: that was all",
    "has_more": "whether there is more in that direction",
    "searched_back_to": "what is older was not looked at; null: all was",
    "verdict": "what became of it, as a sentence",
    "cause": "of a refusal, what its rule is about",
    "timeline": "what happened, in order",
    "at": "when",
    "what": "what happened",
    "who": "who did it, or said so",
    "timeline.text": "what was said",
    "next_steps": "what may be done; a command is for whoever runs the server",
    "key_name": "of the key that sent it",
    "rule": "by what it was refused",
    "sender": "From; of a refusal the envelope's sender",
    "suppressed": "why it is on the suppression list now",
    "permission": "full_access, or what it may do besides sending",
    "domain": "the one that the key is bound to",
}
"""By the field's name, or that with the name of what it stands in before it."""


def explained(schema: Schema, within: str) -> Schema:
    """Return a schema with the meaning of each field that says nothing of itself."""
    found = dict(schema)
    if "properties" in schema:
        properties = cast("Mapping[str, Schema]", schema["properties"])
        found["properties"] = {name: _meaning(explained(one, name), name, within) for name, one in properties.items()}
    if "items" in schema:
        found["items"] = explained(cast("Schema", schema["items"]), within)
    return found


def _meaning(schema: Schema, name: str, within: str) -> Schema:
    meaning = _MEANINGS.get(f"{within}.{name}", _MEANINGS.get(name, ""))
    return {**schema, "description": meaning} if meaning and "description" not in schema else schema
