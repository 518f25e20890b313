"""Control fields: header fields by which a client speaks to us. They never reach a recipient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

PREFIX = "x-opensend-"
IDEMPOTENCY_KEY = ("idempotency-key", "resend-idempotency-key", "x-idempotency-key")
BEGINNINGS = (PREFIX, *IDEMPOTENCY_KEY)
"""No control field begins otherwise, which is soon seen of all fields of a message."""
TAG, SEND_AT, METADATA = "x-opensend-tag", "x-opensend-send-at", "x-opensend-metadata-"

MOST_TAGS = 75
MOST_METADATA = 50
_KEY_CHARACTERS = 256
_TAG = re.compile(r"([A-Za-z0-9_-]{1,256})(?:\s*=\s*([A-Za-z0-9_-]{0,256}))?")
_METADATA_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_METADATA_CHARACTERS = 1_000
_DELAY = re.compile(r"in\s+(\d{1,6})\s+(minute|hour|day)s?", re.IGNORECASE | re.ASCII)


class ControlFieldError(ValueError):
    """A control field cannot be followed; the text names it and says what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a client asks for besides delivery."""

    idempotency_key: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    send_at: datetime | timedelta | None = None
    """A moment, or a delay from when the message is received."""


NOTHING_ASKED = Wishes()


def is_control(name: str) -> bool:
    """Tell whether a header field, its name in lower case, is for us."""
    return name.startswith(PREFIX) or name in IDEMPOTENCY_KEY


def wishes(ours: Sequence[tuple[str, str]]) -> Wishes:
    """Read control fields; raise ControlFieldError where one cannot be followed."""
    if not ours:
        return NOTHING_ASKED
    return Wishes(
        idempotency_key=_idempotency_key(ours),
        tags=_tags(ours),
        metadata=_metadata(ours),
        send_at=_send_at(ours),
    )


def _idempotency_key(ours: Sequence[tuple[str, str]]) -> str | None:
    keys = {value for name, value in ours if name in IDEMPOTENCY_KEY}
    if len(keys) > 1:
        raise ControlFieldError("Idempotency-Key: the message has several that differ; send one")
    for key in keys:
        if not 1 <= len(key) <= _KEY_CHARACTERS or not key.isprintable():
            raise ControlFieldError(f"Idempotency-Key: expected 1 to {_KEY_CHARACTERS} printable characters")
        return key
    return None


def _tags(ours: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in ours:
        if name == TAG:
            match = _TAG.fullmatch(value)
            if not match:
                raise ControlFieldError(
                    f"X-OpenSend-Tag: expected name=value of letters, digits, _ and -, at most 256 each, "
                    f"got {value[:60]!a}"
                )
            found.append((match[1], match[2] or ""))
    if len(found) > MOST_TAGS:
        raise ControlFieldError(f"X-OpenSend-Tag: {len(found)} tags are over the limit of {MOST_TAGS}")
    return tuple(found)


def _metadata(ours: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in ours:
        if not name.startswith(METADATA):
            continue
        key = name.removeprefix(METADATA)
        if not _METADATA_NAME.fullmatch(key):
            raise ControlFieldError(
                f"X-OpenSend-Metadata-{key[:60]}: expected a name of 1 to 64 letters, digits, _ and -"
            )
        if len(value) > _METADATA_CHARACTERS:
            raise ControlFieldError(f"X-OpenSend-Metadata-{key}: expected at most {_METADATA_CHARACTERS} characters")
        if found.setdefault(key, value) != value:
            raise ControlFieldError(f"X-OpenSend-Metadata-{key}: the message has two that differ; send one")
    if len(found) > MOST_METADATA:
        raise ControlFieldError(f"X-OpenSend-Metadata-: {len(found)} fields are over the limit of {MOST_METADATA}")
    return found


def _send_at(ours: Sequence[tuple[str, str]]) -> datetime | timedelta | None:
    values = [value for name, value in ours if name == SEND_AT]
    if len(values) > 1:
        raise ControlFieldError("X-OpenSend-Send-At: the message has several; send one")
    for value in values:
        if delay := _DELAY.fullmatch(value):
            return timedelta(**{f"{delay[2].lower()}s": int(delay[1])})
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ControlFieldError(
                "X-OpenSend-Send-At: expected a time with its zone such as 2026-01-31T08:00:00+01:00, "
                f"or a delay such as: in 10 minutes; got {value[:60]!a}"
            )
        return moment
    return None
