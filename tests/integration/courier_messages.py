"""Messages that are broken by the change of one byte, each signed with DKIM by the application."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from email import policy
from email.message import EmailMessage, MIMEPart

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_KEY = rsa.generate_private_key(65537, 2048)
_PEM = _KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
_PUBLIC = _KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_SIGNED_FIELDS = [b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type"]


def TXT(name: bytes, timeout: int = 5) -> bytes:  # noqa: N802, ARG001  # the DNS record that a verifier asks for
    """Answer for the application's domain."""
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(_PUBLIC)


def _message() -> EmailMessage:
    message = EmailMessage(policy=policy.SMTP)
    message["From"] = "App <app@example.org>"
    message["To"] = "to@example.net"
    message["Subject"] = "signed"
    message["Date"] = "Wed, 20 Aug 2025 12:00:00 +0000"
    message["Message-ID"] = "<1@example.org>"
    return message


def _inline_image() -> bytes:
    message = _message()
    message.set_content("see below\n.\n..\n")
    message.add_alternative('<img src="cid:logo@example.org">', subtype="html")
    html = message.get_payload(1)
    assert isinstance(html, MIMEPart)
    html.add_related(b"\x89PNG" * 100, "image", "png", cid="<logo@example.org>")
    return message.as_bytes()


def _invitation() -> bytes:
    message = _message()
    message.set_content("come\n")
    message.add_alternative("BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n", subtype="calendar")
    message.get_payload(1).set_param("method", "REQUEST")  # type: ignore[union-attr]
    return message.as_bytes()


def _multipart(kind: str, *parts: bytes) -> bytes:
    head = _message().as_bytes().removesuffix(b"\r\n")
    opened = b"".join(b"--=_b\r\n" + part + b"\r\n" for part in parts)
    return (
        head
        + b"MIME-Version: 1.0\r\nContent-Type: "
        + kind.encode()
        + b'; boundary="=_b"\r\n\r\n'
        + opened
        + b"--=_b--\r\n"
    )


def _pgp() -> bytes:
    text = (
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\ngr\xc3\xbc\xc3\x9fe  \r\n"
    )
    mark = b"Content-Type: application/pgp-signature; name=signature.asc\r\n\r\n-----BEGIN PGP SIGNATURE-----\r\n"
    return _multipart("multipart/signed; micalg=pgp-sha256; protocol=application/pgp-signature", text, mark)


def _smime() -> bytes:
    message = _message()
    message.set_content(
        b"\x30\x82\x01" * 90, "application", "pkcs7-mime", cte="base64", params={"smime-type": "signed-data"}
    )
    return message.as_bytes()


def _signed(message: bytes) -> bytes:
    # Simple canonicalisation, so that one space more is noticed.
    signature = dkim.sign(
        message, b"s", b"example.org", _PEM, include_headers=_SIGNED_FIELDS, canonicalize=(b"simple", b"simple")
    )
    return bytes(signature) + message


SIGNED: Mapping[str, bytes] = {
    name: _signed(message)
    for name, message in {
        "inline image": _inline_image(),
        "invitation": _invitation(),
        "PGP/MIME": _pgp(),
        "S/MIME": _smime(),
    }.items()
}
