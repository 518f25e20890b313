"""Our SMTP ports as a client sees them from this host."""

from __future__ import annotations

import ipaddress
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from opensend_milter.config import Config
from opensend_milter.core.errors import OpensendError

ANSWER_S = 20.0
_READY = 220


class DoorShut(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """A port does not answer as an SMTP server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpPort:
    """One port."""

    name: str
    host: str
    port: int
    implicit_tls: bool
    server_name: str
    proxied: bool = False
    """Speaks the PROXY protocol first."""


def doors_of(config: Config, proxied: frozenset[int] = frozenset()) -> list[SmtpPort]:
    """Return the ports that are on, each at an address of this host."""
    smtp = config.smtp
    address = ipaddress.ip_address(smtp.host)
    loopback = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004  # IPv4
    host = loopback if address.is_unspecified else smtp.host
    name = smtp.hostname or "localhost"
    ports = {"relay": smtp.relay_port, "submission": smtp.submission_port, "smtps": smtp.smtps_port}
    return [
        SmtpPort(
            name=each,
            host=host,
            port=port,
            implicit_tls=each == "smtps",
            server_name=name,
            proxied=port in proxied,
        )
        for each, port in ports.items()
        if port
    ]


@contextmanager
def dialogue(door: SmtpPort) -> Iterator[smtplib.SMTP]:
    """Connect, say EHLO, take TLS where it is offered; the certificate is judged elsewhere."""
    try:
        client = smtplib.SMTP(timeout=ANSWER_S, local_hostname="doctor.localhost")
        try:
            _open(client, door)
            yield client
        finally:
            with suppress(OSError, smtplib.SMTPException):
                client.quit()
            client.close()
    except (OSError, smtplib.SMTPException) as error:
        raise DoorShut(f"{door.host}:{door.port}: {error}") from error


def _open(client: smtplib.SMTP, door: SmtpPort) -> None:
    client.sock = socket.create_connection((door.host, door.port), ANSWER_S)
    if door.proxied:
        family = "TCP6" if ":" in door.host else "TCP4"
        client.sock.sendall(f"PROXY {family} {door.host} {door.host} 40000 {door.port}\r\n".encode())
    if door.implicit_tls:
        _secure(client, door)
    code, text = client.getreply()
    if code != _READY:
        raise smtplib.SMTPConnectError(code, text)
    client.ehlo()
    if client.has_extn("starttls"):
        code, text = client.docmd("STARTTLS")
        if code != _READY:
            raise smtplib.SMTPResponseException(code, text)
        _secure(client, door)
        client.ehlo()


def _secure(client: smtplib.SMTP, door: SmtpPort) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client.sock:
        client.sock = context.wrap_socket(client.sock, server_hostname=door.server_name)
        client.file = None


def shown_certificate(client: smtplib.SMTP) -> bytes | None:
    """Return the certificate that was shown (DER), or None without TLS."""
    return client.sock.getpeercert(binary_form=True) if isinstance(client.sock, ssl.SSLSocket) else None
