"""Idempotency-Keys through both doors and OpenSend's own: no 250 without a message, or a true repetition of one."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Literal
from uuid import uuid4

import psycopg
from hypothesis import strategies as st

from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.adapters.postgres.link import Connection, conninfo_for
from opensend_milter.adapters.schema import migrations
from opensend_milter.core.couriers import Carries
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.intake import Intake
from opensend_milter.core.model import (
    Address,
    EmailId,
    Envelope,
    FrontDoor,
    KeyId,
    Limits,
    Mailbox,
    Message,
    Refuse,
    Repeat,
    Session,
)
from opensend_milter.core.policy import Policy
from opensend_milter.core.request import RequestLimits, SendRequest, read_send
from opensend_milter.core.rules import Rule
from opensend_milter.core.writing import envelope, write
from tests.fuzz.measures import Check
from tests.integration.private_postgres import running_cluster
from tests.unit.messages import decide
from tests.waiting import patience_s

_TO = Address("to@example.net")
_NAMES = ("order-1", "order-2")
_TEXTS = ("hello\n", "bye\n")
_TIMES = (None, "in 2 hours", "in 29 days")
_GIVEN_UP = ("failed", "canceled", "cancelled", "suppressed")
_STATES = ("queued", "processing", "sent", "delivered", "bounced", "complained", *_GIVEN_UP)
_SENDINGS = 5
"""Of eight things that may happen next."""
HISTORIES = st.lists(st.binary(min_size=2, max_size=2), max_size=10).map(b"".join)
"""What happens in an account, one after the other, two octets each."""


@dataclass(slots=True)
class _Known:
    """A message that was taken before, as far as its name is concerned."""

    email_id: EmailId
    by: Literal["one", "other", "rest"]
    name: str
    text: str
    when: str | None
    holds: bool = True
    """It is neither given up nor older than a day."""


@contextmanager
def opened() -> Iterator[Check]:
    """Start a Postgres of our own; yield what lives through a history with an account of its own."""
    with running_cluster() as cluster, tempfile.TemporaryDirectory(prefix="os-fuzz-") as place:
        url = cluster.new_database("names")
        migrations.init(url, Path(place) / "passwords")
        habits = Habits(duplicate_window=timedelta(hours=1), beside_opensend=False, billing=False)
        info = conninfo_for(url, Path(place) / "passwords", "opensend_milter")
        with (
            psycopg.connect(cluster.here("names"), autocommit=True) as connection,
            closing(PostgresIntakeStore(info, habits, name="fuzz", timeout_s=patience_s())) as store,
        ):
            policy = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
            yield lambda octets: _Account(connection, Intake(store, policy)).live(octets)


@dataclass(slots=True)
class _Account:
    connection: Connection
    intake: Intake
    user: str = field(default_factory=lambda: f"user-{uuid4()}")
    keys: dict[str, KeyId] = field(default_factory=dict)
    known: list[_Known] = field(default_factory=list)

    def live(self, octets: bytes) -> float:
        """Let it happen, step by step."""
        domain = f"{uuid4()}.example"
        self.connection.execute(
            "INSERT INTO domains (name, status, user_id) VALUES (%s, 'verified', %s)", [domain, self.user]
        )
        for name in ("one", "other"):
            self.keys[name] = KeyId(str(uuid4()))
            self.connection.execute(
                "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, %s, %s, %s)",
                [self.keys[name], name, hashlib.sha256(self.keys[name].encode()).hexdigest(), self.user],
            )
        for what, how in zip(octets[::2], octets[1::2], strict=False):
            match what % 8:
                case number if number < _SENDINGS:
                    self._send(domain, how)
                case 5:
                    self._move_on(_STATES[how % len(_STATES)])
                case 6:
                    self._rest_takes(domain, how)
                case _:
                    self._a_day_passes()
        return float(len(self.known))

    def _send(self, domain: str, how: int) -> None:
        by: Literal["one", "other"] = "one" if how & 1 else "other"
        name, text, when = _NAMES[how >> 1 & 1], _TEXTS[how >> 2 & 1], _TIMES[(how >> 3) % 3]
        write_it = _by_http if how & 128 else _by_smtp
        message = _received("http" if how & 128 else "smtp", self.keys[by], *write_it(domain, name, text, when))
        (outcome,) = decide(self.intake, [message])
        holder = next((one for one in self.known if one.holds and one.name == name), None)
        if holder is None:
            assert outcome == message.id, outcome
            self.known.append(_Known(message.id, by, name, text, when))
        elif holder.by in {by, "rest"} and (holder.text, holder.when) == (text, when):
            assert outcome == Repeat(email_id=holder.email_id), (outcome, holder)
        else:
            assert isinstance(outcome, Refuse), (outcome, holder)
            assert outcome.rule is Rule.DUPLICATE_KEY
            if holder.by not in {by, "rest"}:
                assert holder.email_id not in outcome.text
        assert self._stored() == len(self.known), outcome

    def _move_on(self, status: str) -> None:
        """What becomes of the newest; what was given up is at its end."""
        newest = self.known[-1] if self.known else None
        if newest and newest.holds:
            newest.holds = status not in _GIVEN_UP
            self.connection.execute("UPDATE emails SET status = %s WHERE id = %s", [status, newest.email_id])

    def _rest_takes(self, domain: str, how: int) -> None:
        """Put down what OpenSend's REST API would; it asks the same index."""
        name, text = _NAMES[how & 1], _TEXTS[how >> 1 & 1]
        if any(one.name == name for one in self.known):
            return
        ((email_id,),) = self.connection.execute(
            'INSERT INTO emails (user_id, "from", "to", subject, text, idempotency_key)'
            " VALUES (%s, %s, %s, 'hi', %s, %s) RETURNING id::text",
            [self.user, f"app@{domain}", json.dumps([_TO]), text, name],
        ).fetchall()
        self.known.append(_Known(EmailId(email_id), "rest", name, text, None))

    def _a_day_passes(self) -> None:
        self.connection.execute(
            "UPDATE emails SET created_at = created_at - interval '25 hours' WHERE user_id = %s", [self.user]
        )
        for one in self.known:
            one.holds = False

    def _stored(self) -> int:
        ((count,),) = self.connection.execute("SELECT count(*) FROM emails WHERE user_id = %s", [self.user]).fetchall()
        return int(count)


def _received(door: FrontDoor, key: KeyId, raw: bytes, recipients: tuple[Address, ...]) -> Message:
    return Message(
        id=new_email_id(),
        session=Session(key_id=key, front_door=door, client_address="192.0.2.7", tls=""),
        envelope=Envelope(sender="", recipients=recipients),
        queue_id="4XQUEUE",
        received_at=datetime.now(UTC),
        raw=raw,
        size=len(raw),
        sha256=hashlib.sha256(raw).digest(),
    )


def _by_http(domain: str, name: str, text: str, when: str | None) -> tuple[bytes, tuple[Address, ...]]:
    """Return a message, and whom it goes to, as our HTTP makes it of what an application asks for."""
    asked: dict[str, object] = {"from": f"app@{domain}", "to": _TO, "subject": "hi", "body": text}
    if when:
        asked["send_at"] = when
    request = read_send(asked, "rele", RequestLimits())
    assert isinstance(request, SendRequest), request
    named = replace(request, idempotency_key=name)
    sender = Mailbox("", Address(f"app@{domain}"))
    return write(named, sender=sender, message_id=f"<{uuid4()}@x>", date=datetime.now(UTC)), envelope(named)


def _by_smtp(domain: str, name: str, text: str, when: str | None) -> tuple[bytes, tuple[Address, ...]]:
    """Return the same as an application writes it itself."""
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = f"app@{domain}", _TO, "hi"
    message["Idempotency-Key"] = name
    if when:
        message["X-OpenSend-Send-At"] = when
    message.set_content(text)
    return message.as_bytes(), (_TO,)
