"""By what a refusal is looked up: a token that only its reply has, and a short ref, which records and logs have too."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from opensend_milter.core import crockford

PATH = "/r/"
"""Of the page that is shown to whoever has the token."""
_TOKEN_BYTES, _TOKEN_CHARACTERS = 16, 26
_REF_CHARACTERS = 10
_LONGEST = 1_000
_TOKEN = re.compile(rf"[{crockford.LETTERS}]{{{_TOKEN_CHARACTERS}}}")
_REF = re.compile(rf"[{crockford.LETTERS}]{{{_REF_CHARACTERS}}}")
_AS_READ_OUT = str.maketrans("ILO", "110")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What of a refusal is shown to whoever has its token."""

    rule: str
    code: int
    enhanced: str
    from_domain: str | None
    """None where the message was not read, or From is of no domain."""


def new_token() -> str:
    """Make a token, by chance alone."""
    return crockford.spelled(int.from_bytes(os.urandom(_TOKEN_BYTES)), _TOKEN_CHARACTERS)


def token_hash(token: str) -> bytes:
    """Return what of a token is kept."""
    return hashlib.sha256(token.encode()).digest()


def ref_of(token: str) -> str:
    """Return the ref of what has this token: it does not lead back to it."""
    first_bits = int.from_bytes(token_hash(token)[:7]) >> 6
    return crockford.spelled(first_bits, _REF_CHARACTERS)


def read_token(text: str) -> str | None:
    """Read a token in any case, and with letters for digits that look alike; None: it is none."""
    spelled = text.upper().translate(_AS_READ_OUT) if len(text) == _TOKEN_CHARACTERS else ""
    return spelled if _TOKEN.fullmatch(spelled) else None


def read_ref(text: str) -> str | None:
    """Read the ref that a person means who gives one, a token, or the address of its page; None: it is neither."""
    last = text[:_LONGEST].strip().rpartition("/")[2]
    if token := read_token(last):
        return ref_of(token)
    spelled = last.upper().translate(_AS_READ_OUT)
    return spelled if _REF.fullmatch(spelled) else None
