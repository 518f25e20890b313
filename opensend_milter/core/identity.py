"""By what a message is known when a client, that never heard our 250, sends it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from opensend_milter.core.model import Identity, Message, Reading


def identify(message: Message, reading: Reading) -> Identity:
    """Name a message; what a mail library makes anew for every try, such as boundaries and Date, has no part in it."""
    content = hashlib.sha256()
    recipients = sorted(message.envelope.recipients)
    for text in (reading.sender.address, reading.subject, reading.text, reading.html, *recipients):
        _add(content, [text.encode("utf-8", "surrogatepass")])
    for attachment in reading.attachments:
        for text in (attachment.filename, attachment.content_type):
            _add(content, [text.encode("utf-8", "surrogatepass")])
        _add(content, attachment.content.pieces())
    digest = content.digest()
    key = reading.wishes.idempotency_key
    named = reading.message_id and key is None
    return Identity(
        content_digest=digest,
        fingerprint=_fingerprint(reading.message_id or "", message, digest) if named else None,
        idempotency_key=key,
    )


def _fingerprint(message_id: str, message: Message, digest: bytes) -> bytes:
    fingerprint = hashlib.sha256(digest)
    for text in (message_id, message.envelope.sender):
        _add(fingerprint, [text.encode("utf-8", "surrogatepass")])
    return fingerprint.digest()


def _add(digest: hashlib._Hash, pieces: Iterable[bytes]) -> None:
    """Add one item so that two items never look like one."""
    size = 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    digest.update(b"\x00%d\x00" % size)
