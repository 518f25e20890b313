"""Passwords of people: kept as what scrypt makes of them, so that a copy of the database gives none away."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass

from opensend_milter.core.errors import UsageError

SALT_BYTES = 16
LEAST_CHARACTERS, MOST_CHARACTERS = 12, 1_000
_COST, _BLOCK, _LANES, _DIGEST_BYTES = 2**15, 8, 2, 32
"""32 MB, and a fifth of a second, for each guess (RFC 7914)."""
_MOST_MEMORY_BYTES = 2 * 128 * _COST * _BLOCK


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a password is known again by."""

    salt: bytes
    digest: bytes


NOBODYS = Verifier(bytes(SALT_BYTES), bytes(_DIGEST_BYTES))
"""Compared with where there is no such user: that takes as long, so nobody learns who there is."""


def verifier_of(password: str, salt: bytes) -> Verifier:
    """Return what is kept of a password; the salt is of this one alone."""
    # The same letters, from whatever keyboard.
    known = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    digest = hashlib.scrypt(
        known, salt=salt, n=_COST, r=_BLOCK, p=_LANES, maxmem=_MOST_MEMORY_BYTES, dklen=_DIGEST_BYTES
    )
    return Verifier(salt, digest)


def is_right(password: str, verifier: Verifier) -> bool:
    """Tell whether it is the password."""
    return hmac.compare_digest(verifier_of(password[: MOST_CHARACTERS + 1], verifier.salt).digest, verifier.digest)


def check(password: str) -> str:
    """Return a password that may be one; raise UsageError."""
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        raise UsageError(f"a password of {LEAST_CHARACTERS} to {MOST_CHARACTERS:,} characters is needed")
    return password
