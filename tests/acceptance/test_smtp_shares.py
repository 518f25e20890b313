"""Connections that say nothing: those of one address leave a port to the others, and a full port ends them sooner."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from opensend_milter.host import requirements
from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import MAIL, TAKEN, log_in, submit
from tests.waiting import await_true, scaled_s

SILENT, OTHER = "127.0.0.2", "127.0.0.3"
CONNECTIONS = 150
SHARE = 50
PROCESSES = 10
ANSWER_S = 30.0
"""Less than a silent client had before: 120 s, and 300 s where TLS begins with the first byte."""


def silent(sandbox: Sandbox, port: str, source: str) -> socket.socket:
    """Connect from an address of this host, and say nothing."""
    place = (sandbox["SANDBOX_SMTP_HOST"], int(port))
    return socket.create_connection(place, scaled_s(ANSWER_S), source_address=(source, 0))


@contextmanager
def logged_in(sandbox: Sandbox, port: str, source: str, *, tls_at_once: bool = False) -> Iterator[smtplib.SMTP]:
    """Connect from an address of this host as a client does that has a key."""
    context = ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"])
    place, timeout_s = (sandbox["SANDBOX_SMTP_HOST"], int(port)), scaled_s(ANSWER_S)
    if tls_at_once:
        client: smtplib.SMTP = smtplib.SMTP_SSL(*place, timeout=timeout_s, source_address=(source, 0), context=context)
    else:
        client = smtplib.SMTP(*place, timeout=timeout_s, source_address=(source, 0))
    with client:
        if not tls_at_once:
            client.starttls(context=context)
        client.ehlo()
        assert log_in(client, sandbox["SANDBOX_API_KEY"]).code == 235
        yield client


def code(connection: socket.socket) -> bytes:
    """Return that of the server's next answer."""
    return connection.recv(512)[:3]


@pytest.mark.case(78)
def test_silent_connections_of_one_address_leave_the_port_to_another(rough: Sandbox) -> None:
    for name in ("SANDBOX_SMTP_PORT", "SANDBOX_SUBMISSION_PORT"):
        with ExitStack() as stack:
            held = [stack.enter_context(silent(rough, rough[name], SILENT)) for _ in range(CONNECTIONS)]
            with logged_in(rough, rough[name], OTHER) as client:
                assert submit(client, MAIL).codes == TAKEN
            assert Counter(map(code, held)) == {b"220": SHARE, b"421": CONNECTIONS - SHARE}


@pytest.mark.case(78)
def test_silence_where_tls_begins_with_the_first_byte_is_short(rough: Sandbox) -> None:
    """Postfix counts there only after the handshake, so the other waits until the first of the silent are ended."""
    port = rough["SANDBOX_SMTPS_PORT"]
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(silent(rough, port, SILENT))
        with logged_in(rough, port, OTHER, tls_at_once=True) as client:
            assert submit(client, MAIL).codes == TAKEN


def test_a_port_that_several_addresses_fill_ends_silence_sooner(rough: Sandbox) -> None:
    """Who made it full is sent away before who has been silent for longer; another has his place."""
    port = str(requirements.free_ports(["full"])["full"])
    add_port(rough, f"0.0.0.0:{port}")
    with ExitStack() as stack:
        held = []
        for number in range(PROCESSES):
            held.append(stack.enter_context(silent(rough, port, f"127.0.1.{number + 1}")))
            assert code(held[-1]) == b"220"
        with logged_in(rough, port, OTHER) as client:
            assert submit(client, MAIL).codes == TAKEN
        held[0].sendall(b"NOOP\r\n")
        assert code(held[0]) == b"250"


def add_port(sandbox: Sandbox, service: str) -> None:
    """Let Postfix listen on one more port: at the sandbox's own, of a loopback address, it knows no stress."""
    folder = str(sandbox.directory / "postfix")
    entry = f"{service}/inet={service} inet n - n - {PROCESSES} smtpd"
    subprocess.run(["postconf", "-c", folder, "-M", entry], check=True)
    subprocess.run(["postfix", "-c", folder, "reload"], check=True, capture_output=True)
    _, _, port = service.partition(":")

    def listens() -> bool:
        try:
            silent(sandbox, port, OTHER).close()
        except ConnectionRefusedError:
            return False
        return True

    await_true(listens, f"Postfix at {service}")
