"""What the HTTP front door says when the database, or the client, goes away at the worst moment."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import psycopg
import pytest
from anyio import CapacityLimiter
from starlette.types import ASGIApp

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup.messages import PostgresMessages
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.letter import Letter
from opensend_milter.core.model import EmailId, KeyId, Message, Outcome
from opensend_milter.core.policy import OURS
from opensend_milter.core.rates import Ask, Grant, RateLimits
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.submission import Caller, Submission, Wanted
from opensend_milter.servers.throttle import Throttle
from opensend_milter.servers.web.api import LOGINS_AT_ONCE, Api
from opensend_milter.servers.web.bodies import Bodies
from opensend_milter.servers.web.letters import Letters
from opensend_milter.servers.web.messages import Messages
from opensend_milter.servers.web.records import Records
from opensend_milter.servers.web.server import application
from tests.asking import Answer, ask
from tests.integration.private_postgres import Database
from tests.integration.serving import await_ready
from tests.waiting import await_found, await_true, patience_s, scaled_s

Found = TypeVar("Found")
Settings = Mapping[str, dict[str, object]]
KEY_ID = KeyId("0198c5a2-7f00-7abc-8def-0123456789ab")
HALT = "halt"
LOCK = 7
LARGE = "x" * 5_000
"""Above `spool_above_bytes`: such messages are stored one after the other."""
QUICK: Settings = {"milter": {"soft_timeout_s": scaled_s(2), "hard_timeout_s": scaled_s(3), "spool_above_bytes": 4_096}}


@dataclass(frozen=True)
class Answering:
    """A running `opensend-milter http`, its database, and a key that may send from example.org."""

    database: Database
    port: int
    key: str

    def ask(self, method: str, path: str, payload: object = None, key: str = "", **headers: str) -> Answer:
        return ask(self.port, method, path, payload, Authorization=f"Bearer {key or self.key}", **headers)

    def leave(self, payload: object, name: str, after: Callable[[], object], cut: int = 0) -> None:
        """Send a request, without its last octets where `cut` says so, and hang up instead of listening."""
        body = json.dumps(payload).encode()
        head = (
            f"POST /v1/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\nIdempotency-Key: {name}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience_s()) as connection:
            connection.sendall(head + body[: len(body) - cut])
            after()

    def rows(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(query, values).fetchall()


def mail(**changes: object) -> dict[str, object]:
    return {"from": "app@example.org", "to": "to@example.net", "subject": "hi", "body": "hello"} | changes


@contextmanager
def answering(database: Database, settings: Settings, profile: str = "standalone") -> Iterator[Answering]:
    """Start the process with a configuration of its own, and end it."""
    key = f"os_{secrets.token_hex(16)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    with database.connect() as connection:
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'u1')")
        connection.execute("INSERT INTO api_keys (name, token_hash, user_id) VALUES ('t', %s, 'u1')", [digest])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    held = {"password_dir": str(database.password_dir)}
    config: dict[str, object] = {"profile": profile, "database": held, **settings}
    config["http"] = {"port": port, **settings.get("http", {})}
    with (
        tempfile.TemporaryDirectory(prefix="os-http-") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        directory = Path(place)
        (directory / "config.yaml").write_text(json.dumps(config))
        told.bind(str(directory / "notify"))
        told.settimeout(patience_s())
        environ = {**os.environ, "DATABASE_URL": database.url, "NOTIFY_SOCKET": str(directory / "notify")}
        command = [sys.executable, "-m", "opensend_milter", "http", "--config", str(directory / "config.yaml")]
        with (directory / "serve.log").open("ab") as log:
            process = subprocess.Popen(command, env=environ, stderr=log)
        try:
            await_ready(told, process, directory)
            yield Answering(database, port, key)
            assert "Traceback" not in (directory / "serve.log").read_text()
        finally:
            process.terminate()
            process.wait(patience_s())


@pytest.fixture
def front_door(database: Database) -> Iterator[Answering]:
    with answering(database, QUICK) as found:
        yield found


@contextmanager
def held(database: Database, *statements: LiteralString) -> Iterator[None]:
    """Hold the locks that the statements take, until the end or until the server is stopped."""
    with closing(psycopg.connect(database.url)) as connection:
        for statement in statements:
            connection.execute(statement)
        yield
        with suppress(psycopg.OperationalError):
            connection.rollback()


@contextmanager
def halting(database: Database) -> Iterator[None]:
    """Keep a message with the subject `HALT` from being stored, in the middle of its transaction."""
    with database.connect() as connection:
        connection.execute(
            "CREATE FUNCTION public.halt() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
            f" IF NEW.subject = '{HALT}' THEN PERFORM pg_advisory_xact_lock({LOCK}); END IF; RETURN NEW; END$$"
        )
        connection.execute(
            "CREATE TRIGGER halt BEFORE INSERT ON public.emails FOR EACH ROW EXECUTE FUNCTION public.halt()"
        )
    with held(database, "SELECT pg_advisory_xact_lock(7)"):
        yield


def await_halt(front_door: Answering) -> None:
    """Wait until somebody waits for what we hold."""
    with front_door.database.connect() as connection:
        await_true(lambda: connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone(), "somebody waits")


def await_quiet(front_door: Answering) -> None:
    """Wait until nobody is in the middle of anything: what was cut off is rolled back, or done."""
    busy: LiteralString = (
        "SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    await_true(lambda: not front_door.rows(busy), "nobody is busy")


def take_away(database: Database, how: str) -> None:
    if how == "stopped":
        database.cluster.stop()
    else:
        database.cluster.pause()


def bring_back(database: Database) -> None:
    database.cluster.resume()
    database.cluster.start()


# ---------------------------------------------------------------------- the database goes away


@pytest.mark.case(56)
@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_what_is_committed_is_answered_though_its_outcome_cannot_be_seen(front_door: Answering, how: str) -> None:
    """The database goes away between COMMIT and the look that `wait` asks for."""
    database = front_door.database
    with (
        held(database, "LOCK TABLE opensend_milter.recipient_results IN ACCESS EXCLUSIVE MODE"),
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(front_door.ask, "POST", "/v1/send?wait=1", mail())
        await_halt(front_door)
        ((email_id,),) = front_door.rows("SELECT id::text FROM emails")
        take_away(database, how)
        answer = waiting.result()
        bring_back(database)
    assert (answer.status, answer.body["status"]) == (202, "accepted")
    assert (answer.body["id"], answer.body["submission"]) == (email_id, None)
    seen = await_found(lambda: _found(front_door, email_id) or None, "it is shown")
    assert seen["status"] == "received"


def _found(front_door: Answering, email_id: str) -> Any:
    answer = front_door.ask("GET", f"/v1/submissions/{email_id}")
    assert answer.status in {200, 503}
    return answer.body if answer.status == 200 else None


@pytest.mark.case(56)
@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_a_bulk_is_answered_though_the_database_goes_away_in_the_middle(front_door: Answering, how: str) -> None:
    """An id for each; what is accepted is stored, what is not says so; sent again, each is there once."""
    database = front_door.database
    messages = [mail(subject=HALT if number == 15 else f"n {number}", body=LARGE) for number in range(30)]
    with halting(database), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            front_door.ask, "POST", "/v1/send-bulk", {"messages": messages}, Idempotency_Key="the-bulk"
        )
        await_halt(front_door)
        take_away(database, how)
        answer = waiting.result()
        bring_back(database)
    await_quiet(front_door)
    assert answer.status == 202
    results = answer.body["results"]
    ids = [one["request_id"] for one in results]
    assert len(set(ids)) == 30
    accepted = {one["id"] for one in results if one["status"] == "accepted"}
    assert {(one["code"], one["retryable"]) for one in results if one["status"] != "accepted"} == {
        ("unavailable", True)
    }
    assert 0 < len(accepted) == answer.body["accepted"] < 30
    # What was under way when its time was over may be stored a moment later.
    stored = await_found(lambda: _listed(front_door, answer.body["bulk_request_id"]) or None, "it is listed")
    assert accepted <= stored.keys()
    assert set(stored.values()) <= set(ids)

    again = front_door.ask("POST", "/v1/send-bulk", {"messages": messages}, Idempotency_Key="the-bulk")
    assert again.body["accepted"] == 30
    assert stored.keys() <= {one["id"] for one in again.body["results"]}
    assert [one["id"] for one in again.body["results"] if one["id"] in accepted] == [
        one["id"] for one in results if one["status"] == "accepted"
    ]
    assert front_door.rows("SELECT count(*), count(DISTINCT subject) FROM emails") == [(30, 30)]


def _listed(front_door: Answering, bulk_id: str) -> dict[str, str] | None:
    """Return request_id by id, if that is all that is stored."""
    listed = front_door.ask("GET", f"/v1/submissions?limit=100&bulk={bulk_id}").body["submissions"]
    stored = {email_id for (email_id,) in front_door.rows("SELECT id::text FROM emails")}
    found = {one["id"]: one["request_id"] for one in listed}
    return found if found.keys() == stored else None


# ---------------------------------------------------------------------- a fault of ours


class FaultyDesk:
    """Knows every key, and trips over every look at a message."""

    def caller(self, _secret: str) -> Caller:
        return Caller(key_id=KEY_ID, networks=None, may_bulk=True, has_full_access=True, token_hash="")

    def about(self, key_id: KeyId) -> dict[str, object]:
        raise ZeroDivisionError(key_id)

    def submissions(self, key_id: KeyId, ids: Sequence[EmailId]) -> list[Submission]:
        raise ZeroDivisionError(key_id, ids)

    def page(self, key_id: KeyId, wanted: Wanted) -> None:
        raise ZeroDivisionError(key_id, wanted)

    def rejection(self, key_id: KeyId, email_id: EmailId) -> None:
        raise ZeroDivisionError(key_id, email_id)


class NoLetters:
    """Trips over every look at an email."""

    def letters(self, caller: Caller, ids: Sequence[EmailId], *, whole: bool) -> list[Letter]:
        raise ZeroDivisionError(caller, ids, whole)

    def older(self, caller: Caller, than: EmailId | None, limit: int) -> None:
        raise ZeroDivisionError(caller, than, limit)

    def newer(self, caller: Caller, than: EmailId, limit: int) -> None:
        raise ZeroDivisionError(caller, than, limit)

    def now(self) -> datetime:
        raise ZeroDivisionError

    def cancel(self, caller: Caller, email_id: EmailId) -> None:
        raise ZeroDivisionError(caller, email_id)

    def reschedule(self, caller: Caller, email_id: EmailId, moment: datetime) -> None:
        raise ZeroDivisionError(caller, email_id, moment)


class NoLimit:
    """Leases where there is no limit."""

    def lease(self, asks: Sequence[Ask]) -> list[Grant]:
        return [Grant(0, 0.0, 0) for _ in asks]

    def close(self) -> None: ...


def stumble(message: Message) -> Outcome:
    if f"Subject: {HALT}".encode() in message.raw:
        raise ZeroDivisionError
    return message.id


def nothing_to_lend() -> AbstractContextManager[Connection]:
    raise StoreUnavailable


@contextmanager
def faulty(accept: Callable[[Message], Outcome] = stumble) -> Iterator[ASGIApp]:
    """Make an application that takes every message but those with the subject `HALT`."""
    limits = RateLimits(total_per_minute=0, client_per_minute=0, key_per_minute=0, failed_per_minute=0)
    throttle, desk, threads = Throttle(NoLimit(), limits, timeout_s=5), FaultyDesk(), CapacityLimiter(8)
    api = Api(
        accept=lambda messages: [accept(one) for one in messages],
        desk=desk,
        records=Records(store=desk, threads=threads),
        letters=Letters(store=NoLetters(), threads=threads),
        messages=Messages(store=PostgresMessages(nothing_to_lend, beside=False), turns=threads),
        throttle=throttle,
        bodies=Bodies(limits=RequestLimits(), default_from="", max_bulk_messages=10),
        threads=threads,
    )
    throttle.start()
    yield application(api.routes())
    throttle.stop()


async def post(app: ASGIApp, path: str, payload: object, query: bytes = b"") -> tuple[int, Any]:
    """Call it as uvicorn does."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": json.dumps(payload).encode()}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer os_key"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query,
        "headers": headers,
        "client": ("192.0.2.7", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent))


def test_a_fault_of_ours_after_the_commit_is_no_failure() -> None:
    with faulty() as app:
        status, body = asyncio.run(post(app, "/v1/send", mail(), b"wait=30"))
    assert (status, body["status"], body["submission"]) == (202, "accepted", None)


def test_a_fault_of_ours_with_one_message_leaves_the_others_their_ids() -> None:
    messages = [mail(), mail(subject=HALT), mail()]
    with faulty() as app:
        status, body = asyncio.run(post(app, "/v1/send-bulk", {"messages": messages}))
    assert status == 202
    assert [one["status"] for one in body["results"]] == ["accepted", "rejected", "accepted"]
    assert (body["results"][1]["code"], body["results"][1]["retryable"]) == ("unavailable", True)
    assert len({one["request_id"] for one in body["results"]}) == 3


def test_a_fault_of_ours_with_one_message_is_that_of_a_strict_batch() -> None:
    letters = [{"from": "a@example.org", "to": "b@example.net", "subject": name, "text": ""} for name in ("hi", HALT)]
    with faulty(lambda message: OURS if HALT.encode() in message.raw else message.id) as app:
        status, body = asyncio.run(post(app, "/emails/batch", letters))
    assert (status, body["code"], body["name"], body["retryable"]) == (503, "unavailable", "application_error", True)
    assert body["message"] == OURS.text, "nobody knows whether it is stored"


# ---------------------------------------------------------------------- the client goes away


def test_a_client_that_leaves_while_it_is_stored_finds_it_by_its_key(front_door: Answering) -> None:
    with halting(front_door.database):
        front_door.leave(mail(subject=HALT), "left", after=lambda: await_halt(front_door))
        assert front_door.rows("SELECT id FROM emails") == []
    ((email_id,),) = await_found(lambda: front_door.rows("SELECT id::text FROM emails") or None, "it is stored")
    answer = front_door.ask("POST", "/v1/send", mail(subject=HALT), Idempotency_Key="left")
    assert (answer.status, answer.body["id"]) == (202, email_id)
    assert front_door.ask("POST", "/v1/send", mail(), Idempotency_Key="left").status == 409
    assert front_door.rows("SELECT count(*) FROM emails") == [(1,)]


def test_a_client_that_asks_again_meanwhile_gets_the_first_id(front_door: Answering) -> None:
    """The first request is still under way when its repetition comes."""
    with ThreadPoolExecutor(1) as pool:
        with halting(front_door.database):
            front_door.leave(mail(subject=HALT), "left", after=lambda: await_halt(front_door))
            again = pool.submit(front_door.ask, "POST", "/v1/send", mail(subject=HALT), Idempotency_Key="left")
        answer = again.result()
    ((email_id,),) = front_door.rows("SELECT id::text FROM emails")
    assert (answer.status, answer.body["id"]) == (202, email_id)


def test_a_client_that_leaves_before_the_end_has_sent_nothing(front_door: Answering) -> None:
    """Not even where all but the last octet came: its key is still free."""
    front_door.leave(mail(), "left", after=lambda: None, cut=1)
    answer = front_door.ask("POST", "/v1/send", mail(subject="other"), Idempotency_Key="left")
    assert answer.status == 202
    assert front_door.rows("SELECT id::text FROM emails") == [(answer.body["id"],)]


# ---------------------------------------------------------------------- strangers


@pytest.mark.parametrize("at_once", [1, 50])
def test_failed_authentications_are_throttled_before_the_database_is_asked(database: Database, at_once: int) -> None:
    """By client, as a trusted proxy names it; the statements in the database's log are counted."""
    log = database.cluster.directory / "log"
    settings: Settings = {"http": {"trusted_proxies": "127.0.0.0/8"}, "limits": {"failed_per_minute": 10}}
    with answering(database, settings) as front_door:
        before = log.stat().st_size

        def ask(client: str, key: str) -> int:
            header = f"198.51.100.9, {client}"  # what stands left of the client's address he wrote himself
            return front_door.ask("GET", "/v1/keys/self", key=key, X_Forwarded_For=header).status

        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            wrong = list(pool.map(lambda number: ask("192.0.2.7", f"os_wrong{number}"), range(100)))
        assert sorted(set(wrong)) == [403, 429]
        asked = log.read_bytes()[before:].count(b"opensend_milter.key_id(")
        refilled = int((time.monotonic() - began) * 10 / 60) + 1
        assert 10 <= wrong.count(403) == asked <= 10 + refilled * LOGINS_AT_ONCE
        refused = front_door.ask("GET", "/v1/keys/self", X_Forwarded_For="192.0.2.7")
        assert (refused.status, refused.body["code"], refused.body["retryable"]) == (429, "rate_limited", True)
        assert 1 <= int(refused.headers["retry-after"]) <= 6
        assert refused.headers["ratelimit-policy"] == '"failed";q=10;w=60'
        assert log.read_bytes()[before:].count(b"opensend_milter.key_id(") == asked
        assert ask("192.0.2.8", front_door.key) == 200
        assert ask("192.0.2.8", "os_wrong") == 403


# ---------------------------------------------------------------------- tables that change


@pytest.mark.case(71)
@pytest.mark.altered_tables
def test_tables_that_differ_are_503_by_name_until_they_are_mended(beside: Database) -> None:
    with answering(beside, {}, "opensend") as running:
        assert running.ask("GET", "/readyz").status == 200
        assert running.ask("POST", "/v1/send", mail()).status == 202
        logged = "SELECT endpoint, method, status, request_body, response_body FROM logs"
        ((endpoint, method, status, request, response),) = running.rows(logged)
        assert (endpoint, method, status) == ("/v1/send", "POST", 200)
        assert (request["mail_from"], request["recipients"]) == ("app@example.org", ["to@example.net"])
        assert response.keys() == {"id"}

        with beside.connect() as connection:
            connection.execute("ALTER TABLE emails RENAME tags TO labels")
        await_true(lambda: running.ask("POST", "/v1/send", mail()).status == 503, "a message that is not taken")
        await_true(lambda: running.ask("GET", "/readyz").status == 503, "a word that it is not ready")
        told = running.ask("GET", "/readyz")
        assert told.body == {
            "status": "not ready",
            "reason": "tables: emails.tags is missing here, jsonb expected",
        }
        assert running.ask("GET", "/healthz").status == 200

        with beside.connect() as connection:
            connection.execute("ALTER TABLE emails RENAME labels TO tags")
        await_true(lambda: running.ask("GET", "/readyz").status == 200, "ready again")
        await_true(lambda: running.ask("POST", "/v1/send", mail()).status == 202, "a message that is taken")


def test_a_database_that_is_away_is_503_and_no_word_of_tables(database: Database) -> None:
    with answering(database, {}) as running:
        database.cluster.stop()
        told = running.ask("GET", "/readyz")
        assert told.status == 503
        assert "tables" not in str(told.body)
        database.cluster.start()
        await_true(lambda: running.ask("GET", "/readyz").status == 200, "ready again")


# ---------------------------------------------------------------------- keys that are none


def asked_of(database: Database, since: int) -> list[str]:
    """Return what the server was asked since then, with what stands for a key's hash and its process left out."""
    with (database.cluster.directory / "log").open("rb") as file:
        file.seek(since)
        log = file.read().decode()
    found = re.findall(r"LOG:  (?:statement|execute \S+): (.*?)(?=\n\d{4}-|\Z)", log, re.DOTALL)
    # Now and then somebody looks whether the tables are as they were.
    return [re.sub(r"[0-9a-f]{64}", "HASH", statement) for statement in found if "pg_class" not in statement]


@pytest.mark.case(50)
def test_a_key_that_is_unknown_costs_what_one_costs_that_is_nearly_right(database: Database) -> None:
    """The same statements, as many round trips and the same answer: nothing tells how near a guess was."""
    with answering(database, {"limits": {"failed_per_minute": 0}}) as running:
        revoked = "os_" + "a" * 32
        digest = hashlib.sha256(revoked.encode()).hexdigest()
        with database.connect() as connection:
            connection.execute("INSERT INTO api_keys (name, token_hash) VALUES ('of nobody', %s)", [digest])
        guesses = ["os_" + "0" * 32, running.key[:-1] + ("0" if running.key[-1] != "0" else "1"), revoked, "x"]
        seen = []
        for _ in range(6):  # psycopg prepares what it has asked five times
            running.ask("GET", "/v1/keys/self", key="warm")
        for guess in guesses:
            since = (database.cluster.directory / "log").stat().st_size
            told = running.ask("GET", "/v1/keys/self", key=guess)
            seen.append((told.status, told.body["code"], told.body["message"], asked_of(database, since)))
        assert seen[1:] == seen[:1] * (len(guesses) - 1)
        assert seen[0][0] == 403
        assert any("key_id" in statement for statement in seen[0][3])
