"""What a webhook is told of an event: OpenSend's and Resend's fields, and ours, by which it finds its own message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from opensend_milter.core.feedback import items_of, mapping_of
from opensend_milter.core.next_hop import UNKNOWN_CODES, hop_reply, is_unknown

MOST_BYTES = 65_536
"""Of a body: a receiver may have set itself a limit."""
MOST_LISTED = 100
LONGEST = 500
"""Characters of any one text beside what the event itself says."""
# What a receiver can do without, in the order in which it has to.
_DISPENSABLE = ("details", "metadata", "refused", "deferred", "to", "tags", "recipients")
_STATES: Mapping[str, str] = {
    "delayed": "deferred",
    "delivery_delayed": "deferred",
    "opened": "delivered",
    "clicked": "delivered",
}
"""Where those stand whom an event is about, where it is called otherwise."""
_OF_ALL = frozenset({"sent", "delayed", "failed", "scheduled"})
"""About all whom it does not name apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """What is known of the message that an event is about; None and empty, where there is no such message."""

    created_at: datetime | None = None
    sender: str | None = None
    """Of From."""
    to: object = None
    subject: str | None = None
    tags: object = None
    metadata: object = None
    message_id: str | None = None
    queue_id: str | None = None
    recipients: Sequence[str] = ()
    """Of the envelope, hidden ones too."""
    key_id: str | None = None
    key_name: str | None = None


def moment(at: datetime) -> str:
    """Write a time as OpenSend does."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def written(told: Mapping[str, object], data: dict[str, object]) -> bytes:
    """Write a body; of one that is too large less and less is told, and `cut` says what is left out."""
    body = _json({**told, "data": data})
    for name in _DISPENSABLE:
        if len(body) <= MOST_BYTES:
            break
        if data.pop(name, None):
            data["cut"] = [*items_of(data.get("cut")), name]
            body = _json({**told, "data": data})
    return body


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def data_of(kind: str, email_id: str | None, payload: Mapping[str, object], mail: Mail) -> dict[str, object]:
    """Tell of an event, without the noun: `bounced`; a text is None and a list empty where nothing is known."""
    about = list(_recipients(kind, payload, mail))
    answer = _answer(_said(payload)) or (about[0].get("answer") if len(about) == 1 else None)
    found: dict[str, object] = {
        **payload,
        "email_id": email_id,
        "created_at": moment(mail.created_at) if mail.created_at else None,
        "message_id": _text(mail.message_id or payload.get("message_id")),
        "queue_id": _text(mail.queue_id or payload.get("queue_id")),
        "from": _text(mail.sender or payload.get("from")),
        "to": [_text(one) for one in items_of(mail.to)[:MOST_LISTED]],
        "subject": _text(payload.get("subject") if mail.subject is None else mail.subject),
        "tags": dict(_tags(mail.tags)),
        "metadata": {str(name)[:LONGEST]: _text(value) for name, value in mapping_of(mail.metadata).items()},
        "key": {"id": mail.key_id, "name": _text(mail.key_name)},
        "recipients": about[:MOST_LISTED],
        "answer": answer,
    }
    found.pop("key_id", None)
    if len(about) > MOST_LISTED:
        found["cut"] = ["recipients"]
    return found | {name: tell(payload, about) for name, tell in _AS_RESEND.get(kind, {}).items()}


def _recipients(kind: str, payload: Mapping[str, object], mail: Mail) -> Iterator[Mapping[str, object]]:
    """Tell of each recipient whom the event is about, and where it stood then."""
    state = _STATES.get(kind, kind)
    named = [mapping_of(one) for one in items_of(payload.get("recipients"))]
    refused, deferred = ([mapping_of(one) for one in items_of(payload.get(name))] for name in ("refused", "deferred"))
    if named:
        yield from (_told(one, state) for one in named)
        return
    # Of a report that names nobody, its only recipient is meant, if there is only one.
    if (kind in _OF_ALL and not (kind == "failed" and refused)) or len(mail.recipients) == 1:
        apart = {str(one.get("email")) for one in (*refused, *deferred)}
        state_of_others = "sent" if deferred else state
        yield from ({"email": one, "state": state_of_others} for one in mail.recipients if one not in apart)
    yield from (_told(one, "deferred") for one in deferred)
    yield from (_told(one, "bounced" if is_unknown(str(one.get("reason"))) else "failed") for one in refused)


def _told(one: Mapping[str, object], state: str) -> dict[str, object]:
    answer = _answer(one.get("diagnostic") or one.get("reason"))
    status = one.get("status")
    if answer is None and status:
        answer = {"code": None, "enhanced": status, "text": ""}
    return {**one, "state": state, **({"answer": answer} if answer else {})}


def _said(payload: Mapping[str, object]) -> object:
    return payload.get("reply") or payload.get("reason")


def _answer(said: object) -> dict[str, object] | None:
    """Take apart what the next hop answered."""
    reply = hop_reply(said) if isinstance(said, str) else None
    return {"code": reply.code, "enhanced": reply.enhanced, "text": reply.text[:LONGEST]} if reply else None


def _tags(tags: object) -> Iterator[tuple[str, str | None]]:
    """Turn tags as they are stored into what Resend's webhooks have."""
    for tag in map(mapping_of, items_of(tags)):
        if name := _text(tag.get("name")):
            yield name, _text(tag.get("value"))


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:LONGEST]


_About = Sequence[Mapping[str, object]]


def _bounce(payload: Mapping[str, object], about: _About) -> Mapping[str, object]:
    details = mapping_of(payload.get("details"))
    first = about[0] if about else {}
    kind = (
        "Permanent" if payload.get("permanent") else "Undetermined" if payload.get("via") == "inline" else "Transient"
    )
    status = str(first.get("status", ""))
    message = first.get("diagnostic") or status or payload.get("reason") or ""
    return {
        "type": details.get("bounceType") or kind,
        "subType": details.get("bounceSubType") or ("NoEmail" if status in UNKNOWN_CODES else "General"),
        "message": _text(message),
    }


def _failed(payload: Mapping[str, object], _about: _About) -> Mapping[str, object]:
    return {"reason": _text(payload.get("reason"))}


def _click(payload: Mapping[str, object], _about: _About) -> Mapping[str, object]:
    details = mapping_of(payload.get("details"))
    return {
        "timestamp": payload.get("at"),
        "ipAddress": details.get("ipAddress"),
        "userAgent": details.get("userAgent"),
        "link": details.get("link"),
    }


def _suppressed(payload: Mapping[str, object], about: _About) -> Mapping[str, object]:
    return {"type": _text(about[0].get("reason")) if about else None, "message": _text(payload.get("reason"))}


_AS_RESEND: Mapping[str, Mapping[str, Callable[[Mapping[str, object], _About], object]]] = {
    "bounced": {"bounce": _bounce},
    "failed": {"failed": _failed},
    "clicked": {"click": _click},
    "suppressed": {"suppressed": _suppressed},
}
