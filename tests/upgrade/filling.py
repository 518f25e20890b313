"""An installation that has been used: keys with rules, suppressions, and messages in every state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage

from opensend_milter.adapters.postgres.link import Connection
from tests.integration.private_postgres import Database
from tests.upgrade.clients import Door, Http, Smtp, mail_named
from tests.upgrade.copying import copy_messages, copy_refusals
from tests.upgrade.hosts import MailHost
from tests.upgrade.ledger import token
from tests.waiting import await_true

USER, DOMAIN = "shop", "sender.example"
SUPPRESSED = "gone@example.net"
ORIGINALS = 50
"""Of each kind, really sent; the others are copies of their rows."""
SHARES = {"sent": 30, "uncertain": 10, "waiting": 30, "scheduled": 20}
"""In a hundred; what is left was refused."""
WORKER = "opensend-worker.service"
_INTERRUPTED = """
    WITH job AS (
        UPDATE opensend_milter.jobs
        SET state = 'attempting', attempts = 1, lease_id = gen_random_uuid(), worker = 'gone',
            lease_until = now() - interval '1 minute'
        RETURNING email_id
    )
    UPDATE public.emails e SET status = 'processing' FROM job WHERE e.id = job.email_id
"""
"""As a worker leaves them that dies in its attempt."""
_DUE = """
    WITH mail AS (UPDATE public.emails SET scheduled_at = now() WHERE status = 'scheduled' RETURNING id)
    UPDATE opensend_milter.jobs j SET not_before = now(), announce_at = now() FROM mail WHERE j.email_id = mail.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Secrets of three keys, as applications have them."""

    plain: str
    ruled: str
    rotated: str
    """The earlier of two secrets, which is still good."""


@dataclass(frozen=True, slots=True)
class Filled:
    """One message that was there before."""

    email_id: str
    name: str

    @property
    def kind(self) -> str:
        return self.name.split("-")[2]


def make_keys(host: MailHost) -> Keys:
    """Make a user's domain, keys, rules and suppressions by the commands of its version."""
    host.ours("domain", "add", DOMAIN, "--verified", "--user", USER)
    made = [host.asked("key", "create", "--user", USER, "--name", name) for name in ("plain", "ruled", "rotated")]
    plain, ruled, rotated = (str(one["token"]) for one in made)
    host.ours(
        "key", "set", str(made[1]["id"]), "--allow-from", f"@{DOMAIN}", "--allow-to", "@example.net", "--per-minute",
        "6000", "--per-day", "100000", "--network", "127.0.0.0/8", "--no-attachments",
    )  # fmt: skip
    host.ours("key", "rotate", str(made[2]["id"]), "--keep", "7d")
    for reason, address in (("bounced", SUPPRESSED), ("complained", "cross@example.net"), ("manual", "no@example.net")):
        host.ours("suppression", "add", address, "--reason", reason, "--user", USER)
    return Keys(plain=plain, ruled=ruled, rotated=rotated)


def fill(host: MailHost, database: Database, keys: Keys, messages: int) -> list[Filled]:
    """Bring messages into every state by the program of the host; the worker is stopped at the end."""
    with database.connect() as connection:
        for kind, share in SHARES.items():
            with _worker_runs(host, runs=kind == "sent"):
                _send(host, keys, kind)
                if kind == "sent":
                    _await_none(connection, "SELECT FROM public.emails WHERE status <> 'sent'", "all are sent")
            if kind == "uncertain":
                connection.execute(_INTERRUPTED)
                with _worker_runs(host, runs=True):
                    _await_none(connection, "SELECT FROM opensend_milter.jobs WHERE state <> 'uncertain'", kind)
            copy_messages(connection, f"up-fill-{kind}-%", messages * share // 100 // ORIGINALS - 1)
        _be_refused(host, keys)
        copy_refusals(connection, messages * (100 - sum(SHARES.values())) // 100 // ORIGINALS - 1)
        connection.execute("ANALYZE")
        rows = connection.execute("SELECT id::text, subject FROM public.emails ORDER BY subject").fetchall()
    return [Filled(email_id, name) for email_id, name in rows]


def make_due(connection: Connection) -> None:
    """Let the time come for what is scheduled."""
    connection.execute(_DUE)


@contextmanager
def _worker_runs(host: MailHost, *, runs: bool) -> Iterator[None]:
    host.system.systemctl("start" if runs else "stop", WORKER)
    yield
    host.system.systemctl("stop", WORKER)


def _send(host: MailHost, keys: Keys, kind: str) -> None:
    with host.network():
        doors: list[Door] = [Smtp(host.tls(), keys.plain, keeps=True), Http(keys.plain)]
        for number in range(ORIGINALS):
            # A scheduled one has its time in a field, which is SMTP's way.
            door = doors[kind != "scheduled" and number % 5 == 4]
            answer = door.send(_message(kind, number))
            assert answer.verdict == "accepted", answer
        doors[0].close()


def _message(kind: str, number: int) -> EmailMessage:
    """Write one of some shapes in turn."""
    fields = {"X_OpenSend_Send_At": "in 2 hours"} if kind == "scheduled" else {}
    mail = mail_named(token("fill", kind, number), **fields)
    shape = number % 4
    if shape == 1:
        mail.add_alternative(f"<p>Grüße von <b>{mail['Subject']}</b></p>", subtype="html")
    elif shape == 2:
        mail.add_attachment(bytes(range(256)) * 40, "application", "octet-stream", filename="Übersicht.bin")
    elif shape == 3:
        mail["Cc"], mail["X-OpenSend-Tag"] = "c@example.net", "campaign=upgrade"
    return mail


def _be_refused(host: MailHost, keys: Keys) -> None:
    with host.network():
        for number in range(ORIGINALS):
            mail = mail_named(token("fill", "refused", number))
            name, value = ("To", SUPPRESSED) if number % 2 else ("From", "a@foreign.example")
            mail.replace_header(name, value)
            answer = Smtp(host.tls(), keys.plain, keeps=False).send(mail)
            assert answer.code == 550, answer


def _await_none(connection: Connection, query: bytes | str, what: str) -> None:
    await_true(lambda: not connection.execute(query.encode() if isinstance(query, str) else query).rowcount, what)
