"""By what a message is known when a client, that never heard our 250, sends it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from opensend_milter.core import row
from opensend_milter.core.model import Identity, Message, Reading


def identify(message: Message, reading: Reading) -> Identity:
    """Name a message; what a mail library makes anew for every try, such as boundaries and Date, has no part in it."""
    content = hashlib.sha256()
    recipients = sorted(message.envelope.recipients)
    for text in (reading.sender.address, reading.subject, reading.text, reading.html):
        _add_text(content, text)
    content.update(_items(recipients))
    for attachment in reading.attachments:
        for text in (attachment.filename, attachment.content_type):
            _add_text(content, text)
        _add(content, attachment.content.views())
    if message.one_of:  # a list that is longer or shorter is another request, though it begins the same
        _add_text(content, f"one of {message.one_of}")
    digest = content.digest()
    key = reading.wishes.idempotency_key
    named = reading.message_id and key is None
    return Identity(
        content_digest=digest,
        fingerprint=_fingerprint(reading.message_id or "", message, reading, digest) if named else None,
        idempotency_key=key,
    )


def _fingerprint(message_id: str, message: Message, reading: Reading, digest: bytes) -> bytes:
    fingerprint = hashlib.sha256(digest)
    for text in (message_id, message.envelope.sender):
        _add_text(fingerprint, text)
    if reading.wishes.send_at is not None:  # at another time it is another message
        _add_text(fingerprint, str(reading.wishes.send_at))
    return fingerprint.digest()


def row_digest(message: Message, reading: Reading) -> bytes:
    """Name a message as the database names a row that REST made of the same content: opensend_milter.row_digest.

    What one front door makes of a content and the other cannot say has no part in it: types of attachments, a name
    shown with From, how lines end. Who is shown in To and who in Cc has none in `content_digest` either.
    """
    recipients = sorted({_lower(row.ascii_domain(address)) for address in message.envelope.recipients})
    items = [
        _hex(_lower(row.ascii_domain(reading.sender.address))),
        _hex(b" ".join(recipients)),
        *(_hex(text.encode("utf-8", "replace")) for text in (reading.subject.strip(" "), *_lines(reading))),
    ]
    for attachment in reading.attachments:
        letters = hashlib.sha256()
        for piece in attachment.content.pieces():
            letters.update(piece.translate(None, b" \t\r\n"))
        items += [_hex(attachment.filename.encode("utf-8", "replace")), letters.hexdigest()]
    return hashlib.sha256("\n".join(items).encode()).digest()


def _hex(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def _lower(address: str) -> bytes:
    """As Postgres' collation C: letters beyond ASCII stay."""
    return address.encode("utf-8", "replace").lower()


def _lines(reading: Reading) -> Iterator[str]:
    for text in (reading.text, reading.html):
        yield text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _add_text(digest: hashlib._Hash, text: str) -> None:
    octets = text.encode("utf-8", "surrogatepass")
    digest.update(octets)
    digest.update(b"\x00%d\x00" % len(octets))


def _items(texts: Iterable[str]) -> bytes:
    """Write what `_add_text` adds, for many that are short: an update for each takes as long as all the rest."""
    octets = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join([b"%b\x00%d\x00" % (each, len(each)) for each in octets])


def _add(digest: hashlib._Hash, pieces: Iterable[bytes | memoryview]) -> None:
    """Add one item so that two items never look like one."""
    size = 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    digest.update(b"\x00%d\x00" % size)
