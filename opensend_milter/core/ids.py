"""Ids that sort by the time they were made, so that an index grows at its end."""

from __future__ import annotations

import os
import time
import uuid
from functools import lru_cache

from opensend_milter.core.model import EmailId, KeyId

SENT_ONCE = "opensend-milter:sent:{}"
"""Source id of an email's `sent` event, whoever writes it: so it is there once."""
_CHARACTERS = 36
"""Of the one form that we take: UUID() reads others."""


def new_email_id() -> EmailId:
    """Make a UUID of milliseconds, then chance.

    It is laid out as version 7 (RFC 9562, 5.7) and says that it is of version 4: what comes back of a message by SES
    is dropped by OpenSend where the id is of a version beyond 5.
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 4 << 76
    digits = f"{value & ~(0b11 << 62) | 0b10 << 62:032x}"
    return EmailId(f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}")


@lru_cache(maxsize=10_000)
def key_id(text: str) -> KeyId | None:
    """Read an API key's id, or None where the text is none."""
    try:
        return KeyId(str(uuid.UUID(text))) if len(text) == _CHARACTERS else None
    except ValueError:
        return None
