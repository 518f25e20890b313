"""Hands messages in byte for byte, and finds out what became of them."""

from __future__ import annotations

import hashlib
import re
import secrets
import smtplib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, LiteralString

from psycopg.rows import TupleRow

from tests.acceptance.running_sandbox import Sandbox
from tests.waiting import await_found

Mechanism = Literal["PLAIN", "LOGIN"]

FROM = b"From: app@sandbox.test\r\n"
MAIL = FROM + b"Subject: hi\r\n\r\nhi\r\n"
TO = "to@example.net"
LIMIT = 41_943_040
HEAD_BYTES = 8_192
"""Of a delivered message: with its envelope and our Received field."""
PIECE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply of the server."""

    code: int
    enhanced: str
    text: str

    @property
    def codes(self) -> tuple[int, str]:
        return self.code, self.enhanced

    @property
    def queue_id(self) -> str:
        """Postfix's handle of an accepted message."""
        found = re.search(r"queued as (\S+)", self.text)
        assert self.code == 250, self
        assert found, self
        return found[1]


TAKEN = (250, "2.0.0")


def answer(reply: tuple[int, bytes]) -> Answer:
    code, text = reply
    enhanced = re.match(rb"[245]\.\d{1,3}\.\d{1,3}(?= )", text)
    return Answer(code, enhanced[0].decode() if enhanced else "", text.decode("utf-8", "replace"))


def unique(prefix: str = "t") -> str:
    """Return a name that no other test has."""
    return f"{prefix}-{secrets.token_hex(8)}"


# ---------------------------------------------------------------------- speaking SMTP


def said(client: smtplib.SMTP, line: str) -> Answer:
    """Say one command; beyond ASCII it goes out as UTF-8."""
    client.send(f"{line}\r\n".encode())
    return answer(client.getreply())


def authenticate(client: smtplib.SMTP, mechanism: Mechanism, *responses: bytes, initial: bool = True) -> Answer:
    """Log in with the responses in turn; `initial`: the first of them in the same line as AUTH."""
    encoded = [b64encode(response).decode() for response in responses]
    reply = said(client, f"AUTH {mechanism} {encoded.pop(0) or '='}" if initial else f"AUTH {mechanism}")
    for response in encoded:
        assert reply.code == 334, reply
        reply = said(client, response)
    return reply


def log_in(client: smtplib.SMTP, key: str) -> Answer:
    return authenticate(client, "PLAIN", f"\0apikey\0{key}".encode())


def begin(client: smtplib.SMTP, *recipients: str, sender: str = "app@sandbox.test", options: str = "") -> Answer:
    """Say MAIL and each RCPT; return the first answer that is no yes, else the last."""
    reply = said(client, f"MAIL FROM:<{sender}>{options and ' '}{options}")
    for recipient in recipients:
        if reply.code != 250:
            break
        reply = said(client, f"RCPT TO:<{recipient}>")
    return reply


def submit(
    client: smtplib.SMTP, message: bytes, *recipients: str, sender: str = "app@sandbox.test", options: str = ""
) -> Answer:
    """Hand in one message as it stands; return the first answer that is no yes, else the last."""
    reply = begin(client, *(recipients or (TO,)), sender=sender, options=options)
    if reply.code == 250:
        reply = said(client, "DATA")
    if reply.code != 354:
        return reply
    stuffed = re.sub(rb"(?m)^\.", b"..", message)
    assert not stuffed or stuffed.endswith(b"\r\n"), "DATA carries whole lines only"
    return answered(client, stuffed + b".\r\n")


def answered(client: smtplib.SMTP, octets: bytes) -> Answer:
    """Send octets as they are and read one reply; a server that had enough before the end is listened to."""
    with suppress(BrokenPipeError, ConnectionResetError):
        for at in range(0, len(octets), PIECE_BYTES):
            assert client.sock
            client.sock.sendall(octets[at : at + PIECE_BYTES])
    return answer(client.getreply())


def answers_to_the_end(client: smtplib.SMTP, octets: bytes) -> list[Answer]:
    """Send octets in one piece, QUIT behind them, and return every reply until the server hangs up."""
    found: list[Answer] = []
    client.send(octets + b"QUIT\r\n")
    with suppress(smtplib.SMTPServerDisconnected):
        while True:
            found.append(answer(client.getreply()))
    return found


# ---------------------------------------------------------------------- what became of it


def rows(sandbox: Sandbox, query: LiteralString, *values: object) -> list[TupleRow]:
    """Ask the database as superuser."""
    done = sandbox.database().execute(query, values)
    return done.fetchall() if done.description else []


def count(sandbox: Sandbox) -> int:
    """Return the number of messages that are stored; where the tables disagree there is none."""
    query: LiteralString = (
        "SELECT (SELECT count(*) FROM emails), (SELECT count(*) FROM opensend_milter.submissions),"
        " (SELECT count(DISTINCT email_id) FROM opensend_milter.raw_chunks),"
        " (SELECT count(*) FROM opensend_milter.jobs j WHERE NOT EXISTS (SELECT FROM emails e WHERE e.id = j.email_id))"
    )
    ((emails, submissions, raw, stray_jobs),) = rows(sandbox, query)
    assert emails == submissions == raw
    assert stray_jobs == 0
    return int(emails)


@contextmanager
def nothing_stored(sandbox: Sandbox) -> Iterator[None]:
    """See that no message is stored meanwhile."""
    before = count(sandbox)
    yield
    assert count(sandbox) == before


@dataclass(frozen=True, slots=True)
class Stored:
    """An accepted message as the database has it."""

    raw: bytes
    sender: str
    """MAIL FROM."""
    recipients: list[str]
    row: Mapping[str, object]
    """OpenSend's: from, to, cc, bcc, subject."""
    tls: str


def stored(sandbox: Sandbox, queue_id: str) -> Stored:
    """Find the one row of an accepted message."""
    query: LiteralString = (
        "SELECT s.sender, s.recipients, s.tls, s.size_bytes, s.sha256, to_jsonb(e),"
        " (SELECT string_agg(bytes, ''::bytea ORDER BY chunk_no) FROM opensend_milter.raw_chunks c"
        "  WHERE c.email_id = e.id)"
        " FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id WHERE s.queue_id = %s"
    )
    ((sender, recipients, tls, size, digest, row, raw),) = rows(sandbox, query, queue_id)
    assert size == len(raw)
    assert digest == hashlib.sha256(raw).digest()
    return Stored(raw, sender, recipients, row, tls)


def refusals(sandbox: Sandbox, sender: str) -> list[TupleRow]:
    """Return rule, code, enhanced code and recipients of what was refused to this MAIL FROM."""
    query: LiteralString = (
        "SELECT rule, code, enhanced, recipients FROM opensend_milter.refusals WHERE sender = %s ORDER BY id"
    )
    return rows(sandbox, query, sender)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message as the inbox has it."""

    return_path: str
    recipients: list[str]
    content: bytes
    """Without what the inbox itself wrote above it."""

    def prepended(self, message: bytes) -> list[str]:
        """Return the names of the fields above the message, which must be there to the last byte."""
        assert self.content.endswith(message), self.content[: 2 * HEAD_BYTES]
        above = self.content.removesuffix(message)
        return [name.decode() for name in re.findall(rb"(?m)^([!-9;-~]+):", above)]


def delivered(sandbox: Sandbox, queue_id: str) -> Delivered:
    """Wait for the one message that carries this queue id in our Received field."""
    path = await_found(lambda: in_inbox(sandbox, f" id {queue_id};"), lambda: _whereabouts(sandbox, queue_id))
    envelope = re.match(rb"Return-Path: <([^\r]*)>\r\n((?:Delivered-To: [^\r]*\r\n)*)", content := path.read_bytes())
    assert envelope
    recipients = re.findall(r"Delivered-To: ([^\r]*)\r\n", envelope[2].decode())
    return Delivered(envelope[1].decode(), recipients, content[envelope.end() :])


def _whereabouts(sandbox: Sandbox, queue_id: str) -> str:
    """Tell what is known of a message that does not arrive."""
    query: LiteralString = (
        "SELECT now(), e.status, j.state, j.not_before, j.attempts, j.worker, j.last_error"
        " FROM opensend_milter.submissions s LEFT JOIN emails e ON e.id = s.email_id"
        " LEFT JOIN opensend_milter.jobs j ON j.email_id = s.email_id WHERE s.queue_id = %s"
    )
    return f"{rows(sandbox, query, queue_id)}\n{sandbox.log('worker')[-3_000:]}\n{sandbox.log('inbox')[-1_000:]}"


def in_inbox(sandbox: Sandbox, mark: str) -> Path | None:
    """Find the one message with this mark in its head."""
    found = [path for path in sandbox.inbox() if mark.encode() in _head(path)]
    assert len(found) <= 1, found
    return found[0] if found else None


@cache
def _head(path: Path) -> bytes:
    """Read it once: what is delivered is whole, and is looked at again with each question for another."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


# ---------------------------------------------------------------------- keys and domains


@dataclass(frozen=True, slots=True)
class Account:
    """A user of OpenSend with a verified domain, made by SQL as the dashboard makes it."""

    sandbox: Sandbox
    user_id: str
    domain: str
    domain_id: str

    @classmethod
    def make(cls, sandbox: Sandbox) -> Account:
        user_id = unique("user")
        domain = f"{user_id}.example"
        return cls(sandbox, user_id, domain, add_domain(sandbox, user_id, domain))

    def also_has(self, domain: str) -> None:
        """Verify one more domain."""
        add_domain(self.sandbox, self.user_id, domain)

    def key(self, domain: str | None = None) -> str:
        """Make a key; `domain` is what stands in its column."""
        token = f"os_{secrets.token_hex(16)}"
        rows(
            self.sandbox,
            "INSERT INTO api_keys (name, token_hash, token_preview, permission, domain, user_id)"
            " VALUES ('test', %s, %s, 'sending_access', %s, %s)",
            hashlib.sha256(token.encode()).hexdigest(),
            f"{token[:6]}...{token[-4:]}",
            domain,
            self.user_id,
        )
        return token

    def suppress(self, address: str, reason: str) -> None:
        rows(
            self.sandbox,
            "INSERT INTO email_suppressions (user_id, email, reason) VALUES (%s, %s, %s)",
            self.user_id,
            address,
            reason,
        )

    def logged_in(self, key: str | None = None) -> smtplib.SMTP:
        """Open a connection; without a key, with a new one that is not restricted."""
        client = self.sandbox.connect()
        assert log_in(client, key or self.key()).codes == (235, "2.7.0")
        return client

    def message(self, head: str = "", domain: str | None = None) -> bytes:
        return f"From: app@{domain or self.domain}\r\n{head}Subject: hi\r\n\r\nhi\r\n".encode()


def add_domain(sandbox: Sandbox, user_id: str, name: str) -> str:
    """Add a verified domain; return its id."""
    query: LiteralString = "INSERT INTO domains (name, status, user_id) VALUES (%s, 'verified', %s) RETURNING id::text"
    ((domain_id,),) = rows(sandbox, query, name, user_id)
    return str(domain_id)


def revoke(sandbox: Sandbox, key: str) -> None:
    """Delete a key, as the dashboard does."""
    rows(sandbox, "DELETE FROM api_keys WHERE token_hash = %s", hashlib.sha256(key.encode()).hexdigest())
