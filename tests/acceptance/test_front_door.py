"""What our Postfix was told, seen from a client."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import rows
from tests.waiting import await_found, await_true, patience_s


@pytest.mark.case(17)
def test_no_auth_without_tls(sandbox: Sandbox) -> None:
    with smtplib.SMTP(sandbox["SANDBOX_SMTP_HOST"], int(sandbox["SANDBOX_SMTP_PORT"]), timeout=patience_s()) as client:
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.docmd("AUTH", "PLAIN AGEAYg==")[0] in {503, 530}


def test_no_mail_without_auth(sandbox: Sandbox) -> None:
    with sandbox.connect() as client:
        code, text = client.mail("a@sandbox.test")
        assert (code, text[:5]) == (530, b"5.7.0")
        assert text.endswith(b"Authentication required")


@pytest.mark.case(20)
def test_delivery_status_notifications_are_not_promised(sandbox: Sandbox) -> None:
    with sandbox.smtp() as client:
        assert not client.has_extn("dsn")
        assert client.mail("a@sandbox.test", ["RET=FULL"])[0] in {501, 555}
        assert client.mail("a@sandbox.test")[0] == 250
        assert client.rcpt("b@example.net", ["NOTIFY=NEVER"])[0] in {501, 555}


@pytest.mark.case(21)
def test_the_fifty_first_recipient_is_for_another_message(sandbox: Sandbox) -> None:
    with sandbox.smtp() as client:
        client.mail("a@sandbox.test")
        answers = [client.rcpt(f"r{number}@example.net") for number in range(51)]
        assert {code for code, _ in answers[:50]} == {250}
        code, text = answers[50]
        assert (code, text[:5]) == (452, b"4.5.3")
        assert client.data(b"From: a@sandbox.test\r\nSubject: fifty\r\n\r\nx\r\n")[0] == 250


@pytest.mark.case(44)
def test_a_size_over_the_limit_is_refused_at_mail(sandbox: Sandbox) -> None:
    with sandbox.smtp() as client:
        code, text = client.mail("a@sandbox.test", ["SIZE=41943041"])
        assert (code, text[:5]) == (552, b"5.3.4")
        assert client.mail("a@sandbox.test", ["SIZE=41943040"])[0] == 250


@pytest.mark.case(54)
def test_guessing_ends_and_a_good_key_works_again(sandbox: Sandbox) -> None:
    client = sandbox.connect()
    codes: list[int] = []
    with suppress(smtplib.SMTPServerDisconnected):
        while len(codes) < 30:
            # No base64 at all: refused without the two seconds that Dovecot lets a wrong key wait.
            codes.append(client.docmd("AUTH", "PLAIN =")[0])
    client.close()
    assert codes[-1] == 421
    assert len(codes) <= 21
    sandbox.smtp().quit()


def test_some_refusals_on_a_connection_do_not_end_it(sandbox: Sandbox) -> None:
    with sandbox.smtp() as client:
        for _ in range(12):
            client.mail("a@sandbox.test")
            client.rcpt("a@example.net")
            assert client.data(b"From: a@unverified.test\r\n\r\nx\r\n")[0] == 550
        client.mail("a@sandbox.test")
        client.rcpt("a@example.net")
        assert client.data(b"From: a@sandbox.test\r\n\r\nx\r\n")[0] == 250


@pytest.fixture
def other_rules(rough: Sandbox) -> Iterator[Sandbox]:
    """Share a sandbox whose configuration may be changed: afterwards it is as it was, and Postfix counts anew."""
    before = yaml.safe_load((rough.directory / "opensend-milter.yaml").read_text())["smtp"]
    yield rough
    change(rough, **{"proxies": "", **before})
    rough.await_good()


def change(sandbox: Sandbox, **smtp: object) -> None:
    """Change the section smtp, and end Postfix: its configuration is written anew when it is started again."""
    config, pid = sandbox.directory / "opensend-milter.yaml", sandbox.pid("postfix")
    settings = yaml.safe_load(config.read_text())
    settings["smtp"] |= smtp
    config.write_text(yaml.safe_dump(settings))
    os.kill(pid, signal.SIGTERM)
    await_true(lambda: not Path(f"/proc/{pid}").exists(), "the child ends")


def test_a_client_that_is_too_fast_is_put_off(other_rules: Sandbox) -> None:
    """Logins and messages are counted apart, by address, and 450 says: later."""
    sandbox = other_rules
    change(sandbox, client_logins_per_minute=3, client_messages_per_minute=4)
    sandbox.await_good()
    mail = b"From: a@sandbox.test\r\n\r\nx\r\n"
    with sandbox.smtp() as client:
        answers = []
        for _ in range(5):
            answers.append(client.mail("a@sandbox.test"))
            if answers[-1][0] == 250:
                client.rcpt("b@example.net")
                assert client.data(mail)[0] == 250
        assert [code for code, _ in answers] == [250, 250, 250, 250, 450]
        assert answers[-1][1].startswith(b"4.7.1")
    with pytest.raises(smtplib.SMTPResponseException) as refused:
        _log_in_for_ever(sandbox)
    assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (450, b"4.7.1")


def test_behind_a_balancer_the_client_is_who_it_says(other_rules: Sandbox) -> None:
    """PROXY protocol, version 1: what is recorded is the client's address; who does not speak it gets nothing."""
    sandbox = other_rules
    change(sandbox, proxies="127.0.0.0/8")
    port = int(sandbox["SANDBOX_SMTP_PORT"])
    with await_found(lambda: _connected_as("203.0.113.9", port), "Postfix lets a proxy in") as client:
        client.starttls(context=ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"]))
        client.login("apikey", sandbox["SANDBOX_API_KEY"])
        client.sendmail("a@sandbox.test", ["b@example.net"], b"From: a@sandbox.test\r\n\r\nx\r\n")
    assert rows(sandbox, "SELECT client_address FROM opensend_milter.submissions") == [("203.0.113.9",)]
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s()) as plain:
        plain.sendall(b"EHLO me\r\n")
        assert b"220 " not in plain.recv(4096)


class _Proxied(smtplib.SMTP):
    """A client behind a balancer."""

    address = ""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.create_connection((host, port), timeout)
        connection.sendall(f"PROXY TCP4 {self.address} 192.0.2.1 40000 587\r\n".encode())
        return connection


def _connected_as(address: str, port: int) -> smtplib.SMTP | None:
    client = _Proxied(timeout=patience_s())
    client.address, client._host = address, "127.0.0.1"  # type: ignore[attr-defined]  # what STARTTLS checks the name of
    try:
        client.connect("127.0.0.1", port)
    except (OSError, smtplib.SMTPException):
        client.close()
        return None
    return client


def _log_in_for_ever(sandbox: Sandbox) -> None:
    while True:
        sandbox.smtp().quit()
