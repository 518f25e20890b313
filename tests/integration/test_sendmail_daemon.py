"""A real Sendmail in the place of Postfix, as docs/mtas.md sets it up: SMTP in, rows out."""

from __future__ import annotations

import re
import shutil
import smtplib
import ssl
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from opensend_milter.adapters.admin.rows import NewKey
from tests.integration.gate_sides import Gate, Real, needs_dovecot
from tests.integration.private_postgres import Cluster, Database
from tests.integration.sendmail_daemon import NAME, Sendmail, sendmail
from tests.integration.serving import Serving, serving
from tests.waiting import await_true, patience_s

pytestmark = needs_dovecot

HEAD = b"From: App <app@example.org>\r\n"
MAIL = HEAD + b"To: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"


@dataclass(frozen=True)
class Stand:
    """Sendmail, the gate, Dovecot, the milter and a key of the user u1."""

    served: Serving
    real: Real
    sendmail: Sendmail

    @property
    def key(self) -> NewKey:
        return self.real.key

    @contextmanager
    def connected(self) -> Iterator[smtplib.SMTP]:
        """Connect, with TLS, as yet nobody."""
        with smtplib.SMTP("127.0.0.1", self.sendmail.port, timeout=patience_s()) as client:
            client.starttls(context=self.context())
            client.ehlo()
            yield client

    @contextmanager
    def logged_in(self) -> Iterator[smtplib.SMTP]:
        with self.connected() as client:
            client.login(self.key.id, self.key.token)
            yield client

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.sendmail.ca))
        context.check_hostname = False  # it is for the name, and we connect to the address
        return context

    def taken(self, reply: tuple[int, bytes]) -> tuple[object, ...]:
        """Return what is recorded of a message under the name that its 250 gave."""
        assert reply[0] == 250, reply
        (queue_id,) = re.findall(rb"2\.0\.0 (\S+) Message accepted", reply[1])
        (row,) = self.served.rows(
            "SELECT s.key_id::text, s.client_address, s.tls, s.recipients, j.state, (SELECT string_agg(bytes, NULL"
            " ORDER BY chunk_no) FROM opensend_milter.raw_chunks r WHERE r.email_id = s.email_id)"
            " FROM opensend_milter.submissions s JOIN opensend_milter.jobs j USING (email_id) JOIN emails e"
            " ON e.id = s.email_id WHERE s.queue_id = %s",
            queue_id.decode(),
        )
        return row


@pytest.fixture(scope="module")
def stand(_shared_cluster: Cluster, _template: Path) -> Iterator[Stand]:
    """One for all tests of this module, which leave it as it is."""
    _shared_cluster.new_database("mta", template="template_opensend")
    database = Database("mta", _shared_cluster, _template)
    # Sendmail runs as a user who may enter.
    directory = Path(tempfile.mkdtemp(prefix="os-", dir="/tmp"))
    directory.chmod(0o755)
    gate = Gate(directory)
    gate.write_config("saslauthd", database={"password_dir": str(_template)})
    sockets: dict[str, object] = {"socket": str(directory / "milter.sock"), "socket_group": "postfix"}
    with serving(database.url, _template, milter=sockets) as served:
        real = Real(gate, database)
        served.rows("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'u')")
        with gate.running(), real.dovecot(), sendmail(directory / "milter.sock", gate.socket) as running:
            yield Stand(served, real, running)
            assert running.queued == [], "nothing passes the milter"
    shutil.rmtree(directory)
    _shared_cluster.drop_database("mta")


def handed_in(client: smtplib.SMTP, raw: bytes, *recipients: str) -> tuple[int, bytes]:
    """Hand a message in byte for byte; return the reply to its end."""
    assert client.docmd("MAIL", "FROM:<app@example.org>")[0] == 250
    for recipient in recipients or ("to@example.net",):
        assert client.docmd("RCPT", f"TO:<{recipient}>")[0] == 250, recipient
    assert client.docmd("DATA")[0] == 354
    client.send(re.sub(rb"(?m)^\.", b"..", raw) + b".\r\n")
    return client.getreply()


def test_a_250_is_a_row_a_record_the_bytes_and_a_job(stand: Stand) -> None:
    with stand.logged_in() as client:
        key_id, address, tls, recipients, state, raw = stand.taken(
            handed_in(client, MAIL, "to@example.net", "B@x.test")
        )
        assert stand.taken(handed_in(client, MAIL + b"again\r\n"))
    assert (key_id, address, recipients, state) == (
        stand.key.id,
        "127.0.0.1",
        ["to@example.net", "B@x.test"],
        "waiting",
    )
    assert str(tls).startswith("TLSv1.")
    assert raw == MAIL


def test_tls_from_the_first_byte_and_login_by_the_other_mechanism(stand: Stand) -> None:
    port, context = stand.sendmail.smtps_port, stand.context()
    with smtplib.SMTP_SSL("127.0.0.1", port, timeout=patience_s(), context=context) as client:
        client.ehlo()
        client.user, client.password = stand.key.id, stand.key.token
        assert client.auth("LOGIN", client.auth_login)[0] == 235
        assert stand.taken(handed_in(client, MAIL + b"smtps\r\n"))


def plain(client: smtplib.SMTP, name: str, password: str, authzid: str = "") -> int:
    return client.auth("PLAIN", lambda _=None: f"{authzid}\0{name}\0{password}")[0]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda key, _: (key.id, "os_" + "0" * 32),
        lambda key, _: ("apikey", key.token),
        lambda key, other: (other, key.token),
        lambda key, _: (f"{key.id}@example.org", key.token),
        lambda key, _: (key.id.upper(), key.token),
        lambda key, _: (key.id, ""),
        lambda key, _: (key.id, "x" * 2000),
    ],
    ids=["wrong key", "another name", "another key's id", "a realm", "capitals", "no key", "a long key"],
)
def test_who_does_not_prove_to_be_the_key_is_535(
    stand: Stand, attempt: Callable[[NewKey, str], tuple[str, str]]
) -> None:
    name, password = attempt(stand.key, stand.served.key)
    with stand.connected() as client:
        with suppress(smtplib.SMTPAuthenticationError):
            pytest.fail(f"{plain(client, name, password)}")
        assert client.docmd("MAIL", "FROM:<app@example.org>") == (530, b"5.7.0 Authentication required")


def test_an_authorization_identity_changes_nothing(stand: Stand) -> None:
    with stand.connected() as client:
        assert plain(client, stand.key.id, stand.key.token, authzid=stand.served.key) == 235
        assert stand.taken(handed_in(client, MAIL + b"authzid\r\n"))[0] == stand.key.id


def test_no_auth_without_tls(stand: Stand) -> None:
    with smtplib.SMTP("127.0.0.1", stand.sendmail.port, timeout=patience_s()) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH", "PLAIN AAAA")[0] == 503
        assert client.docmd("MAIL", "FROM:<app@example.org>")[0] == 530


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Subject: one\r\n two\r\n\tthree\r\nX-A:no blank\r\nX-B:   three\r\nX-C:\r\n\r\nhello\r\n",
        HEAD
        + b"Bcc: hidden@example.net\r\nReturn-Path: <x@y.example>\r\nReceived: from a by b; never\r\n\r\nhello\r\n",
        "From: Äpp <app@example.org>\r\nSubject: grüße\r\n\r\nhällo\r\n".encode(),
        HEAD + b"\r\n.\r\n..one\r\n.two\r\n",
        HEAD + b"\r\n" + bytes(range(128, 256)) + b"\r\n",
        HEAD + b"\r\n" + b"x" * 990 + b"\r\n",
        HEAD + b"\r\n" + b"\r\n".join(b"%075d" % number for number in range(3_000)) + b"\r\n",
        HEAD + b"X-Long: " + b"\r\n ".join([b"a" * 70] * 700) + b"\r\n\r\nhello\r\n",
    ],
    ids=["folds", "fields", "8-bit header", "dots", "8-bit body", "long line", "four chunks", "long header"],
)
def test_bytes_are_kept(stand: Stand, raw: bytes) -> None:
    with stand.logged_in() as client:
        assert stand.taken(handed_in(client, raw))[-1] == raw


def test_recipients_are_kept(stand: Stand) -> None:
    odd = [
        '"a b"@example.net',
        "a%b@example.net",
        "a!b@example.net",
        "u@[192.0.2.1]",
        "UP+tag@Example.NET",
        f"x@{NAME}",
    ]
    with stand.logged_in() as client:
        assert stand.taken(handed_in(client, MAIL + b"odd\r\n", *odd))[3] == odd
        code, text = handed_in(client, MAIL, "postmaster")
        assert (code, text[:6]) == (550, b"5.1.3 ")


def test_a_refusal_is_heard_whole(stand: Stand) -> None:
    suppressed = [f"r{number}-{'x' * 50}@example.net" for number in range(40)]
    for address in suppressed:
        stand.served.rows(
            "INSERT INTO email_suppressions (user_id, email, reason) VALUES ('u', %s, 'bounced')", address
        )
    with stand.logged_in() as client:
        code, text = handed_in(client, MAIL, *suppressed)
        assert (code, text[:6]) == (550, b"5.7.1 ")
        assert b"\n5.7.1 " in text, "in several lines"
        code, text = handed_in(client, b"From: app@a%2f.example\r\n\r\nhi\r\n")
        assert code == 550
        assert re.fullmatch(rb"5\.7\.1 the From domain 'a%2f\.example' is not a domain name \(ref \w{10}\)", text)
        assert stand.taken(handed_in(client, MAIL + b"goes on\r\n"))


@pytest.mark.parametrize(("networks", "code"), [("{127.0.0.0/8}", 250), ("{192.0.2.0/24}", 550)])
def test_sendmail_says_the_clients_address_because_it_is_asked(stand: Stand, networks: str, code: int) -> None:
    stand.served.rows(
        "INSERT INTO opensend_milter.key_settings (key_id, networks) VALUES (%s, %s)", stand.key.id, networks
    )
    try:
        with stand.logged_in() as client:
            assert handed_in(client, MAIL + networks.encode() + b"\r\n")[0] == code
    finally:
        stand.served.rows("DELETE FROM opensend_milter.key_settings WHERE key_id = %s", stand.key.id)


@pytest.mark.parametrize(
    ("raw", "reply"),
    [
        (HEAD + b"\r\none\ntwo\r\n", b"4.5.0 Bare linefeed"),
        (HEAD + b"\r\none\rtwo\r\n", b"4.5.0 Bare carriage return"),
        (HEAD + b"\r\none\n.\nMAIL FROM:<x@example.org>\r\n", b"4.5.0 Bare linefeed"),
        (HEAD + b"Subject: a\0b\r\n\r\nhi\r\n", b"5.6.1 NUL"),
        (HEAD + b"\r\na\0b\r\n", b"5.6.1 NUL"),
        (HEAD + b"X-Long: " + b"\r\n ".join([b"a" * 70] * 1_000) + b"\r\n\r\nhi\r\n", b"5.6.0 Headers too large"),
        (b"From : app@example.org\r\n\r\nhi\r\n", b"5.7.1 the message has no From"),
        (HEAD + b"\r\n" + b"x" * 1_000 + b"\r\n", b"5.6.0 a line is longer than 1000"),
    ],
    ids=["LF", "CR", "LF dot LF", "NUL in a field", "NUL in the body", "long header", "From :", "long line"],
)
def test_what_is_not_taken(stand: Stand, raw: bytes, reply: bytes) -> None:
    with stand.logged_in() as client, suppress(smtplib.SMTPServerDisconnected):
        assert handed_in(client, raw)[1].startswith(reply)


def test_what_is_not_offered(stand: Stand) -> None:
    with stand.logged_in() as client:
        offered = {"enhancedstatuscodes", "pipelining", "8bitmime", "size", "auth", "help"}
        assert client.esmtp_features.keys() == offered
        assert client.docmd("MAIL", "FROM:<a@example.org> SMTPUTF8")[0] == 555
        assert client.docmd("MAIL", "FROM:<a@example.org> SIZE=41943041")[0] == 552
        assert client.docmd("MAIL", "FROM:<a@example.org> RET=FULL")[0] == 504
        assert client.docmd("MAIL", "FROM:<a@example.org>")[0] == 250
        replies = [client.docmd("RCPT", f"TO:<r{number}@example.net>")[0] for number in range(51)]
        assert replies == [250] * 50 + [452]


def test_a_fault_of_ours_is_451_and_the_connection_goes_on(stand: Stand) -> None:
    with stand.logged_in() as client:
        stand.served.rows("REVOKE INSERT ON opensend_milter.jobs FROM opensend_milter")
        try:
            assert handed_in(client, MAIL + b"fault\r\n")[0] == 451
        finally:
            stand.served.rows("GRANT INSERT ON opensend_milter.jobs TO opensend_milter")
        assert stand.taken(handed_in(client, MAIL + b"fault\r\n"))


def test_a_login_waits_while_nobody_knows(stand: Stand, cluster: Cluster) -> None:
    def log_in() -> int:
        with stand.connected() as client:
            return plain(client, stand.key.id, stand.key.token)

    with ThreadPoolExecutor(1) as pool:
        cluster.pause()
        waiting = pool.submit(log_in)
        await_true(lambda: "logins put off" in stand.real.gate.log, lambda: stand.real.gate.log)
        assert not waiting.done()
        cluster.resume()
        assert waiting.result(patience_s()) == 235


def test_while_the_milter_is_away_clients_are_told_to_come_again(stand: Stand) -> None:
    with sendmail(stand.sendmail.directory / "nowhere.sock", stand.real.gate.socket) as alone:
        with smtplib.SMTP("127.0.0.1", alone.port, timeout=patience_s()) as client:
            client.ehlo()
            assert client.docmd("STARTTLS")[0] == 454
        with pytest.raises(OSError, match=r"reset by peer|EOF"):
            smtplib.SMTP_SSL("127.0.0.1", alone.smtps_port, timeout=patience_s(), context=stand.context())
        assert alone.queued == []


def test_what_passes_by_mistake_waits_in_the_queue(stand: Stand) -> None:
    """Without F= a milter that is away is no milter."""
    nowhere = stand.sendmail.directory / "nowhere.sock"
    with sendmail(nowhere, stand.real.gate.socket, filter_flag="") as mistaken:
        with replace(stand, sendmail=mistaken).logged_in() as client:
            assert handed_in(client, MAIL)[0] == 250
        assert {path.name[:2] for path in mistaken.queued} == {"df", "qf"}
