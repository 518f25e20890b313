"""Signs what leaves us and comes back: return paths, links, webhooks; each purpose has its own key."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b32decode, b32encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Literal
from uuid import UUID

from opensend_milter.core.model import EmailId

Purpose = Literal["return-path", "link", "webhook"]
MAC_BYTES = 10
"""80 bits: a guess has to be sent to us, and nothing is won with one that is right."""
_ID_BYTES = 16


def derived(secret: bytes, purpose: Purpose, name: str = "") -> bytes:
    """Return the key of one purpose, or of one thing (`name`) of that purpose."""
    return hmac.digest(secret, f"opensend-milter:{purpose}:{name}".encode(), hashlib.sha256)


def return_path_token(key: bytes, email_id: EmailId) -> str:
    """Name an email in a local part, whose letters may come back in either case."""
    return b32encode(_signed(key, UUID(email_id).bytes)).decode().rstrip("=").lower()


def email_of_return_path(key: bytes, token: str) -> EmailId | None:
    """Return the email that a token names, or None where it is not one of ours."""
    payload = _verified(key, lambda: b32decode(_padded(token, 8).upper()))
    return EmailId(str(UUID(bytes=payload))) if payload and len(payload) == _ID_BYTES else None


def link_token(key: bytes, email_id: EmailId, rest: bytes) -> str:
    """Name an email, and what else a link is to say, in a URL."""
    return urlsafe_b64encode(_signed(key, UUID(email_id).bytes + rest)).decode().rstrip("=")


def opened_link(key: bytes, token: str) -> tuple[EmailId, bytes] | None:
    """Return what a link's token says, or None where it is not one of ours."""
    payload = _verified(key, lambda: urlsafe_b64decode(_padded(token, 4)))
    if payload is None or len(payload) < _ID_BYTES:
        return None
    return EmailId(str(UUID(bytes=payload[:_ID_BYTES]))), payload[_ID_BYTES:]


def _signed(key: bytes, payload: bytes) -> bytes:
    return payload + hmac.digest(key, payload, hashlib.sha256)[:MAC_BYTES]


def _verified(key: bytes, decode: Callable[[], bytes]) -> bytes | None:
    try:
        found = decode()
    except (binascii.Error, ValueError):
        return None
    payload, mac = found[:-MAC_BYTES], found[-MAC_BYTES:]
    return payload if hmac.compare_digest(mac, hmac.digest(key, payload, hashlib.sha256)[:MAC_BYTES]) else None


def _padded(token: str, block: int) -> str:
    return token + "=" * (-len(token) % block)
