"""Ids that sort by the time they were made, so that an index grows at its end, and what parts of one name it."""

from __future__ import annotations

import os
import re
import time
import uuid
from functools import lru_cache

from opensend_milter.core.model import EmailId, KeyId

SENT_ONCE = "opensend-milter:sent:{}"
"""Source id of an email's `sent` event, whoever writes it: so it is there once."""
_CHARACTERS = 36
"""Of the one form that we take: UUID() reads others."""
START = 13
"""An id of ours begins with the time, and that part is whole then; fewer are shared by all of a minute."""
_LEAST, _GREATEST = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_END = re.compile(r"[0-9a-f]{12}")


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


def range_of(text: str) -> tuple[str, str] | None:
    """Return the least and the greatest id that begins so; None: that is no beginning of one."""
    start = text.strip().lower()
    least = start + _LEAST[len(start) :]
    return (least, start + _GREATEST[len(start) :]) if len(start) >= START and _ID.fullmatch(least) else None


def is_end(text: str) -> bool:
    """Tell whether an id may end so."""
    return bool(_END.fullmatch(text.strip().lower()))
