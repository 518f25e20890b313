"""Webhooks from the row to the receiver: a real database, real receivers, well behaved and not."""

from __future__ import annotations

import datetime as dt
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from typer.testing import CliRunner, Result

from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBook
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.webhooks import SQL, PostgresWebhooks, lease_of
from opensend_milter.adapters.webhook_calls import MAX_ANSWER_BYTES, HttpMessenger, Resolve, resolve
from opensend_milter.cli import app_of
from opensend_milter.core.errors import StoreUnavailable, TemporaryError, UsageError
from opensend_milter.core.model import Address, Sent
from opensend_milter.core.webhook import Answer, Fate, WebhookId, secret_of
from opensend_milter.host.rendering.certificates import MadeCertificate, make_certificate
from opensend_milter.servers.worker.webhook_dispatch import AT_ONCE, AT_ONCE_EACH, Dispatching, Habits
from tests.integration.outbox import add_email, job_store, rows
from tests.integration.private_postgres import Database
from tests.waiting import NEVER_S, PAUSE_S, await_true, scaled_s

CALL_S = 60.0
"""The longest that may be configured: only what is slow on purpose takes that long."""
Behaviour = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True, slots=True)
class Call:
    """What a receiver was told."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(slots=True)
class Receiver:
    """A web server of a customer's; does as `script` says, once each, and says 200 afterwards."""

    port: int
    calls: list[Call] = field(default_factory=list)
    script: deque[Behaviour] = field(default_factory=deque)
    always: Behaviour | None = None


def says(code: int, text: bytes = b"", **headers: str) -> Behaviour:
    """Answer so."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    return behave


def writes(octets: bytes) -> Behaviour:
    """Answer with just these."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(octets)

    return behave


def drips(before: bytes) -> Behaviour:
    """Say this, and then one byte now and then until nobody listens."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(before)
        while True:
            handler.wfile.write(b"x")
            time.sleep(PAUSE_S)

    return behave


@contextmanager
def receiving(made: MadeCertificate | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
    """Run a receiver on a free port, with TLS where there is a certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.calls.append(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            behave = receiver.script.popleft() if receiver.script else receiver.always or says(200, b"thanks")
            with suppress(OSError):
                behave(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            return (context.wrap_socket(connection, server_side=True) if context else connection), address

    context = None
    if made:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.pair.certificate, made.pair.key)
    server = Server((host, 0), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def database(database: Database) -> Database:
    rows(database, "ALTER TABLE opensend_milter.webhook_settings ADD COLUMN IF NOT EXISTS rotated_at timestamptz")
    return database


def add_webhook(database: Database, url: str, status: str = "active") -> WebhookId:
    ((webhook_id,),) = rows(
        database,
        "INSERT INTO webhooks (url, event_types, status, user_id) VALUES (%s, '[\"email.sent\"]', %s, 'u1')"
        " RETURNING id::text",
        url,
        status,
    )
    return WebhookId(webhook_id)


def add_delivery(database: Database, webhook_id: WebhookId, *, email_id: str | None = None, kind: str = "sent") -> str:
    """Write an event and its delivery, as whoever writes an event does; return the event's id."""
    ((event_id,),) = rows(
        database,
        "WITH event AS (INSERT INTO email_events (email_id, type, payload, user_id) VALUES"
        " (%s, %s, '{\"reply\": \"250 ok\"}', 'u1') RETURNING id)"
        " INSERT INTO webhook_deliveries (webhook_id, event_id, attempt, status) SELECT %s, id, 0, 'pending'"
        " FROM event RETURNING event_id::text",
        email_id,
        kind,
        webhook_id,
    )
    return str(event_id)


def deliveries(database: Database) -> list[tuple[Any, ...]]:
    """Return status, attempts, code and text of all, in the order they were made."""
    return rows(
        database, "SELECT status, attempt, status_code, response_body FROM webhook_deliveries ORDER BY created_at"
    )


def make_due(database: Database) -> None:
    """Let the time pass until the next attempt."""
    rows(database, "UPDATE webhook_deliveries SET next_retry_at = now() WHERE next_retry_at IS NOT NULL")


def secret(database: Database, webhook_id: WebhookId, generation: int = 1) -> str:
    ((signing,),) = rows(database, "SELECT secret FROM opensend_milter.secrets")
    return secret_of(signing, webhook_id, generation)


def store_of(database: Database, name: str = "w") -> PostgresWebhooks:
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    return PostgresWebhooks(info, name=name, timeout_s=CALL_S, lease=lease_of(CALL_S))


@contextmanager
def dispatching(
    database: Database, *, messenger: HttpMessenger | None = None, max_attempts: int = 8
) -> Iterator[Dispatching]:
    running = Dispatching(
        store_of(database),
        messenger or HttpMessenger(timeout_s=CALL_S, allow_private=True),
        Habits(
            max_attempts=max_attempts,
            poll_interval_s=0.02,
            drain_s=CALL_S,
            now=lambda: dt.datetime.now(dt.UTC),
            jitter=random.random,
        ),
    )
    try:
        yield running
    finally:
        running.close()


def run_until(dispatching: Dispatching, condition: Callable[[], bool]) -> None:
    def is_true() -> bool:
        if condition():
            return True
        dispatching.step()
        return False

    await_true(is_true, "the dispatcher's doing", pause_s=0)


def run_once(dispatching: Dispatching) -> None:
    """Call whatever is due, and record it."""
    run_until(dispatching, lambda: dispatching.step() != 0.0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_event_reaches_its_receiver_signed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Over both, whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    made = make_certificate(tmp_path, ["localhost"], now=dt.datetime.now(dt.UTC))
    context = ssl.create_default_context(cafile=str(made.ca))
    with receiving(made if scheme == "https" else None) as receiver:
        webhook_id = add_webhook(database, f"{scheme}://localhost:{receiver.port}/hook?x=1")
        email_id = add_email(database)
        event_id = add_delivery(database, webhook_id, email_id=email_id)
        messenger = HttpMessenger(timeout_s=CALL_S, allow_private=True, context=context)
        with dispatching(database, messenger=messenger) as running:
            run_once(running)
    (call,) = receiver.calls
    assert (call.path, call.id, call.headers["host"]) == ("/hook?x=1", event_id, f"localhost:{receiver.port}")
    assert call.headers["content-type"] == "application/json"
    told = Verifier(secret(database, webhook_id)).verify(call.body, call.headers)
    assert (told["type"], told["data"]["email_id"], told["data"]["reply"]) == ("email.sent", email_id, "250 ok")
    assert deliveries(database) == [("success", 1, 200, "thanks")]


def test_whoever_sent_it_finds_its_message_again(database: Database, receiver: Receiver) -> None:
    """By what it gave itself, and by what its 250 named; of a recipient refused at once it hears as of any bounce."""
    ((key_id,),) = rows(
        database, "INSERT INTO api_keys (name, token_hash, user_id) VALUES ('shop', 'h', 'u1') RETURNING id::text"
    )
    rows(
        database,
        "INSERT INTO webhooks (url, event_types, status, user_id)"
        """ VALUES (%s, '["email.sent", "email.bounced"]', 'active', 'u1')""",
        f"http://127.0.0.1:{receiver.port}/",
    )
    email_id = add_email(database, recipients=["ann@example.net", "bob@example.net"], queue_id="4XfindMe")
    rows(
        database,
        """UPDATE emails SET "to" = '["ann@example.net"]', tags = '[{"name": "order", "value": "4711"}]',"""
        """ document = '{"metadata": {"cart": "7"}, "other": 1}'""",
    )
    rows(database, "UPDATE opensend_milter.submissions SET message_id = '<1@shop>', key_id = %s", key_id)
    store = job_store(database)
    job = store.claim(email_id)
    assert job
    assert store.begin(job)
    unknown = ((Address("bob@example.net"), "550 5.1.1 no such user"),)
    store.record_sent(job, Sent(courier="smtp", reply="250 2.0.0 ok", refused=unknown, host="mx:25"))
    store.close()
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    book = PostgresFeedbackBook(info, name="f", timeout_s=CALL_S, soft_bounces=3)
    assert book.apply(100) == 1
    book.close()
    with dispatching(database) as running:
        run_until(running, lambda: len(receiver.calls) == 2)
        run_once(running)
    told = {one["type"]: one["data"] for one in (json.loads(call.body) for call in receiver.calls)}
    for found in told.values():
        assert (found["email_id"], found["message_id"], found["queue_id"]) == (email_id, "<1@shop>", "4XfindMe")
        assert (found["from"], found["to"], found["subject"]) == ("app@example.org", ["ann@example.net"], "hi")
        assert (found["tags"], found["metadata"]) == ({"order": "4711"}, {"cart": "7"})
        assert found["key"] == {"id": key_id, "name": "shop"}
    answer = {"code": 550, "enhanced": "5.1.1", "text": "no such user"}
    states = [[(one["email"][:3], one["state"]) for one in found["recipients"]] for _, found in sorted(told.items())]
    assert states == [[("bob", "bounced")], [("ann", "sent"), ("bob", "bounced")]]
    assert told["email.bounced"]["answer"] == answer
    assert told["email.bounced"]["bounce"]["type"] == "Permanent"
    assert told["email.sent"]["answer"]["code"] == 250


def test_what_waits_since_the_version_before_is_sent_as_it_was(database: Database, receiver: Receiver) -> None:
    """A replay too: a receiver may have had it, and by its id it is the same."""
    email_id = add_email(database)
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"), email_id=email_id)
    rows(database, "UPDATE email_events SET received_at = now() - interval '1 day'")
    rows(database, "UPDATE opensend_milter.migrations SET applied_at = now() - interval '1 hour'")
    with dispatching(database) as running:
        run_once(running)
    (call,) = receiver.calls
    assert json.loads(call.body)["data"] == {"reply": "250 ok", "email_id": email_id}


def test_a_receiver_that_fails_is_asked_again(database: Database, receiver: Receiver) -> None:
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    receiver.script += [says(500, b"oh\x00no"), says(200, b"fine")]
    with dispatching(database) as running:
        run_once(running)
        assert deliveries(database) == [("pending", 1, 500, "oh\ufffdno")]
        ((wait_s,),) = rows(database, "SELECT extract(epoch FROM next_retry_at - attempted_at) FROM webhook_deliveries")
        assert 5 <= wait_s < 8
        run_once(running)
        assert len(receiver.calls) == 1
        make_due(database)
        run_once(running)
    assert deliveries(database) == [("success", 2, 200, "fine")]
    first, second = receiver.calls
    assert (first.id, first.body) == (second.id, second.body)


def test_one_that_fails_for_ever_is_given_up(database: Database, receiver: Receiver) -> None:
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    receiver.always = says(500)
    with dispatching(database, max_attempts=3) as running:
        for _ in range(5):
            run_once(running)
            make_due(database)
    assert len(receiver.calls) == 3
    assert deliveries(database) == [("dead_letter", 3, 500, "")]
    assert rows(database, "SELECT next_retry_at FROM webhook_deliveries") == [(None,)]


def test_one_that_is_gone_is_given_up_at_once(database: Database, receiver: Receiver) -> None:
    """The webhook stays as it is: whether it comes back is for a person to say."""
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    receiver.script.append(says(410))
    with dispatching(database) as running:
        run_once(running)
    assert deliveries(database) == [("dead_letter", 1, 410, "")]
    assert rows(database, "SELECT status FROM webhooks") == [("active",)]


def test_retry_after_is_heeded(database: Database, receiver: Receiver) -> None:
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    receiver.script.append(says(429, Retry_After="600"))
    with dispatching(database) as running:
        run_once(running)
    ((wait_s,),) = rows(database, "SELECT extract(epoch FROM next_retry_at - attempted_at) FROM webhook_deliveries")
    assert wait_s >= 600


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nX: ", None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", 500),
    ],
)
def test_one_that_drips_is_cut(receiver: Receiver, before: bytes, code: int | None) -> None:
    """It would go on for as long as anybody listens. Where the status came in time it counts."""
    timeout_s = scaled_s(0.5)
    receiver.script.append(drips(before))
    messenger = HttpMessenger(timeout_s=timeout_s, allow_private=True)
    answer = messenger.post(f"http://127.0.0.1:{receiver.port}/", {}, b"{}")
    assert answer.code == code
    assert answer.text.strip("x") == ("" if code else f"no answer within {timeout_s:g} s")


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"", None),
        (b"SSH-2.0-x\r\n", None),
        (b"HTTP/1.1 2000 OK\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n\xff\xfe", 200),
    ],
)
def test_answers_that_are_none(receiver: Receiver, octets: bytes, code: int | None) -> None:
    receiver.script.append(writes(octets))
    answer = HttpMessenger(timeout_s=CALL_S, allow_private=True).post(f"http://127.0.0.1:{receiver.port}/", {}, b"{}")
    assert answer.code == code, answer


def test_of_a_huge_answer_little_is_read(receiver: Receiver) -> None:
    written = 0

    def gush(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            written += handler.connection.send(b"y" * 65_536)

    receiver.script.append(gush)
    answer = HttpMessenger(timeout_s=CALL_S, allow_private=True).post(f"http://127.0.0.1:{receiver.port}/", {}, b"{}")
    assert answer == Answer(code=200, text="y" * 1_000)
    assert written < 16_000_000 + MAX_ANSWER_BYTES  # what the kernel holds on both sides


def test_a_redirect_is_not_followed(database: Database, receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.port}"
    add_delivery(database, add_webhook(database, f"{url}/"))
    receiver.script.append(says(302, Location=f"{url}/elsewhere"))
    with dispatching(database) as running:
        run_once(running)
    assert [call.path for call in receiver.calls] == ["/"]
    assert deliveries(database) == [("pending", 1, 302, "")]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "[::1]"])
def test_nothing_of_this_host_is_called(database: Database, receiver: Receiver, host: str) -> None:
    """Not by name, not by any spelling of its address."""
    add_delivery(database, add_webhook(database, f"https://{host}:{receiver.port}/"))
    with dispatching(database, messenger=HttpMessenger(timeout_s=CALL_S, allow_private=False)) as running:
        run_once(running)
    assert receiver.calls == []
    ((status, attempt, code, text),) = deliveries(database)
    assert (status, attempt, code) == ("pending", 1, None)
    assert "is at no public address" in text


def answering(*answers: Sequence[str]) -> tuple[Resolve, list[str]]:
    """Make a resolver that says something else each time."""
    asked: list[str] = []

    def answer(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    return answer, asked


def test_the_address_that_was_looked_at_is_the_one_called(receiver: Receiver) -> None:
    """A name that changes its mind between the look and the call changes nothing."""
    with receiving(host="127.0.0.2") as other:
        resolver, asked = answering(["169.254.169.254", "127.0.0.1"], ["127.0.0.2"])
        messenger = HttpMessenger(timeout_s=CALL_S, allow_private=True, resolve=resolver)
        assert messenger.post(f"http://rebind.test:{receiver.port}/", {}, b"{}").code == 200
        assert (asked, len(receiver.calls), other.calls) == (["rebind.test"], 1, [])
    resolver, asked = answering(["10.0.0.1", "::ffff:127.0.0.1"])
    messenger = HttpMessenger(timeout_s=CALL_S, allow_private=False, resolve=resolver)
    answer = messenger.post(f"https://rebind.test:{receiver.port}/", {}, b"{}")
    assert answer.text == "rebind.test is at no public address: 10.0.0.1, ::ffff:127.0.0.1"


def test_where_one_address_is_dead_the_next_is_tried(receiver: Receiver) -> None:
    resolver, _ = answering(["127.0.0.2", "127.0.0.1"])
    messenger = HttpMessenger(timeout_s=CALL_S, allow_private=True, resolve=resolver)
    assert messenger.post(f"http://two.test:{receiver.port}/", {}, b"{}").code == 200


def test_a_certificate_must_be_trusted_and_for_that_name(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, ["localhost"], now=dt.datetime.now(dt.UTC))
    context = ssl.create_default_context(cafile=str(made.ca))
    with receiving(made) as receiver:
        for host, trust in (("localhost", None), ("127.0.0.1", context)):
            messenger = HttpMessenger(timeout_s=CALL_S, allow_private=True, context=trust)
            answer = messenger.post(f"https://{host}:{receiver.port}/", {}, b"{}")
            assert answer.code is None
            assert "CERTIFICATE_VERIFY_FAILED" in answer.text
    assert receiver.calls == []


def test_a_handshake_that_stalls_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        messenger = HttpMessenger(timeout_s=0.3, allow_private=True)
        answer = messenger.post(f"https://127.0.0.1:{silent.getsockname()[1]}/", {}, b"{}")
    assert answer.text == "no answer within 0.3 s"


def test_a_name_that_nobody_knows() -> None:
    messenger = HttpMessenger(timeout_s=CALL_S, allow_private=False)
    for url in ("https://no-such-name.invalid/", "https://" + "a" * 64 + "/"):
        with pytest.raises(TemporaryError, match="cannot be looked up"):
            messenger.vet(url)
        assert "cannot be looked up" in messenger.post(url, {}, b"").text
    with pytest.raises(UsageError):
        messenger.vet("https://localhost/")
    assert resolve("127.0.0.1", 1) == ["127.0.0.1"]


def test_two_dispatchers_deliver_each_once(database: Database, receiver: Receiver) -> None:
    webhooks = [add_webhook(database, f"http://127.0.0.1:{receiver.port}/{number}") for number in range(5)]
    expected = {add_delivery(database, webhook_id) for webhook_id in webhooks for _ in range(20)}

    def run() -> None:
        with dispatching(database) as running:
            run_until(running, lambda: len(receiver.calls) >= len(expected))
            run_once(running)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(call.id for call in receiver.calls) == dict.fromkeys(expected, 1)
    assert {(status, attempt) for status, attempt, *_ in deliveries(database)} == {("success", 1)}


def test_a_dispatcher_lost_in_a_call_is_made_good(database: Database, receiver: Receiver) -> None:
    """Told twice, by one id; and what the lost one still says counts only where it was a yes."""
    event_id = add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    lost = store_of(database, "lost")
    (claimed,) = lost.claim(4, [])
    with dispatching(database) as running:
        run_once(running)
        assert receiver.calls == []
        make_due(database)
        receiver.script.append(says(500))
        run_once(running)
    assert [call.id for call in receiver.calls] == [event_id]
    assert deliveries(database) == [("pending", 2, 500, "")]
    assert not lost.record(claimed, Answer(code=502, text=""), Fate("pending", 5))
    assert lost.record(claimed, Answer(code=200, text="late"), Fate("success"))
    assert not lost.record(claimed, Answer(code=500, text=""), Fate("pending", 5))
    assert deliveries(database) == [("success", 2, 200, "late")]
    lost.close()


def test_a_slow_receiver_holds_up_nobody_else(database: Database, receiver: Receiver) -> None:
    go_on = threading.Event()
    with receiving() as slow:
        slow.always = lambda handler: says(200)(handler) if go_on.wait(NEVER_S) else None
        slow_id = add_webhook(database, f"http://127.0.0.1:{slow.port}/")
        for _ in range(10):
            add_delivery(database, slow_id)
        quick_id = add_webhook(database, f"http://127.0.0.1:{receiver.port}/")
        for _ in range(10):
            add_delivery(database, quick_id)
        with dispatching(database, messenger=HttpMessenger(timeout_s=NEVER_S, allow_private=True)) as running:
            run_until(running, lambda: len(receiver.calls) == 10)
            assert 1 <= len(slow.calls) <= AT_ONCE_EACH < AT_ONCE
            go_on.set()
            run_until(running, lambda: len(slow.calls) == 10)
    assert Counter(status for status, *_ in deliveries(database)) == {"success": 20}


def test_a_stop_waits_for_calls_and_records_them(database: Database, receiver: Receiver) -> None:
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    go_on = threading.Event()
    receiver.script.append(lambda handler: says(200)(handler) if go_on.wait(NEVER_S) else None)
    with dispatching(database) as running:
        run_until(running, lambda: bool(receiver.calls))
        go_on.set()
    assert deliveries(database) == [("success", 1, 200, "")]


def test_an_inactive_webhook_is_left_alone(database: Database, receiver: Receiver) -> None:
    webhook_id = add_webhook(database, f"http://127.0.0.1:{receiver.port}/", status="disabled")
    add_delivery(database, webhook_id)
    with dispatching(database) as running:
        run_once(running)
        assert (receiver.calls, deliveries(database)) == ([], [("pending", 0, None, None)])
        rows(database, "UPDATE webhooks SET status = 'active'")
        run_once(running)
    assert len(receiver.calls) == 1


def test_an_outcome_waits_for_a_database_that_is_away(database: Database, receiver: Receiver) -> None:
    add_delivery(database, add_webhook(database, f"http://127.0.0.1:{receiver.port}/"))
    go_on = threading.Event()
    receiver.script.append(lambda handler: says(200)(handler) if go_on.wait(NEVER_S) else None)
    with dispatching(database) as running:
        run_until(running, lambda: bool(receiver.calls))
        database.cluster.stop()
        go_on.set()
        with pytest.raises(StoreUnavailable):
            run_until(running, lambda: False)
        with pytest.raises(StoreUnavailable):
            running.step()
        database.cluster.start()
        run_once(running)
    assert len(receiver.calls) == 1
    assert deliveries(database) == [("success", 1, 200, "")]


def test_the_log_names_neither_url_nor_words_of_the_receiver(
    database: Database, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    webhook_id = add_webhook(database, f"http://127.0.0.1:{receiver.port}/token-of-theirs")
    add_delivery(database, webhook_id)
    receiver.script.append(says(500, b"no mailbox some@one.example"))
    caplog.set_level(logging.DEBUG)
    with dispatching(database) as running:
        run_once(running)
    assert f"webhook={webhook_id}" in caplog.text
    assert "code=500" in caplog.text
    for private in ("token-of-theirs", "some@one.example", "no mailbox", "whsec_"):
        assert private not in caplog.text


def test_of_a_long_list_only_the_head_is_read(database: Database) -> None:
    """With the index that the standalone profile's tables have."""
    rows(database, "INSERT INTO email_events (type, payload) SELECT 'sent', '{}' FROM generate_series(1, 2000)")
    for number in range(5):
        webhook_id = add_webhook(database, f"http://127.0.0.1:1/{number}")
        rows(
            database,
            "INSERT INTO webhook_deliveries (webhook_id, event_id, attempt) SELECT %s, id, 0 FROM email_events",
            webhook_id,
        )
    rows(
        database,
        "CREATE INDEX IF NOT EXISTS webhook_deliveries_due_idx ON webhook_deliveries"
        " (webhook_id, coalesce(next_retry_at, created_at)) WHERE status = 'pending'",
    )
    rows(database, "VACUUM ANALYZE webhook_deliveries")
    with database.connect() as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        values = {"limit": 4, "full": [webhook_id], "lease": lease_of(CALL_S)}
        plan = str(connection.execute(b"EXPLAIN ANALYZE " + SQL["claim"].encode(), values).fetchall())
        touched = [int(found) for found in re.findall(r"webhook_deliveries \w+ .*?actual time=\S+ rows=(\d+)", plan)]
    assert len(touched) >= 3, plan
    assert max(touched) <= 5, plan
    assert "Seq Scan on webhook_deliveries" not in plan


Run = Callable[..., Result]


def runner(database: Database, directory: Path, profile: str) -> Run:
    """Run `webhook ...` against a test's database."""

    def invoke(*words: str, allow_private: bool = True) -> Result:
        path = directory / f"{profile}.yaml"
        path.write_text(
            f"profile: {profile}\ndatabase:\n  password_dir: {database.password_dir}\n"
            f"webhooks:\n  allow_private: {str(allow_private).lower()}\n  timeout_s: {CALL_S}\n"
        )
        environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path)}
        return CliRunner().invoke(app_of(["webhook"]), ["webhook", *words], env=environment)

    return invoke


@pytest.fixture
def run(database: Database, tmp_path: Path) -> Run:
    return runner(database, tmp_path, "standalone")


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_webhook_is_added_and_found(database: Database, receiver: Receiver, run: Run) -> None:
    url = f"http://127.0.0.1:{receiver.port}/"
    added = parsed(run("add", url, "--user", "u1", "--events", "email.sent,bounced", "--json"))
    webhook_id = added["webhook"]["id"]
    assert added["webhook"]["event_types"] == ["email.sent", "email.bounced"]
    assert added["secret"] == secret(database, webhook_id)
    assert run("secret", webhook_id[:8].upper()).stdout == added["secret"] + "\n"
    assert len(parsed(run("add", url, "--json"))["webhook"]["event_types"]) == 11
    assert [row["id"] for row in parsed(run("list", "--user", "u1", "--json"))] == [webhook_id]
    assert len(parsed(run("list", "--json"))) == 2
    add_delivery(database, webhook_id)
    receiver.script.append(says(500, b"[/bold]\x1b[2J"))
    with dispatching(database) as running:
        run_once(running)
    (row,) = parsed(run("list", "--user", "u1", "--json"))
    assert (row["last_status"], row["last_code"], row["pending"]) == ("pending", 500, 1)
    assert "[/bold]\ufffd[2J" in run("deliveries", webhook_id).stdout
    (told,) = parsed(run("deliveries", webhook_id, "--status", "pending", "--json"))
    assert (told["type"], told["attempt"], told["code"]) == ("email.sent", 1, 500)
    assert parsed(run("deliveries", webhook_id, "--status", "success", "--json")) == []
    rotated = parsed(run("rotate", webhook_id, "--yes", "--json"))
    assert rotated["secret"] == secret(database, webhook_id, 2)
    assert run("remove", webhook_id, "--yes").exit_code == 0
    for table in ("webhook_deliveries", "opensend_milter.webhook_settings"):
        assert rows(database, f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608


def test_after_a_change_both_secrets_verify(database: Database, receiver: Receiver, run: Run) -> None:
    added = parsed(run("add", f"http://127.0.0.1:{receiver.port}/", "--json"))
    webhook_id = WebhookId(added["webhook"]["id"])
    second = parsed(run("rotate", webhook_id, "--json"))["secret"]
    add_delivery(database, webhook_id)
    with dispatching(database) as running:
        run_once(running)
        rows(database, "UPDATE opensend_milter.webhook_settings SET rotated_at = rotated_at - interval '1 day'")
        add_delivery(database, webhook_id)
        run_once(running)
    first_call, second_call = receiver.calls
    for known in (added["secret"], second):
        Verifier(known).verify(first_call.body, first_call.headers)
    Verifier(second).verify(second_call.body, second_call.headers)
    assert " " not in second_call.headers["webhook-signature"]
    assert parsed(run("rotate", webhook_id, "--json"))["webhook"]["generation"] == 3


def test_a_receiver_can_be_tried(receiver: Receiver, run: Run) -> None:
    added = parsed(run("add", f"http://127.0.0.1:{receiver.port}/", "--json"))
    webhook_id = added["webhook"]["id"]
    shown = run("test", webhook_id)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("taken: 200 in ")
    assert shown.stdout.endswith(" ms\nthanks\n")
    (call,) = receiver.calls
    assert Verifier(added["secret"]).verify(call.body, call.headers)["type"] == "webhook.test"
    receiver.script.append(says(401, b"who\x1b are\nyou"))
    refused = run("test", webhook_id, "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["text"] == "who\ufffd are"
    assert run("test", webhook_id, allow_private=False).exit_code == 1


def test_deliveries_are_made_again(database: Database, receiver: Receiver, run: Run) -> None:
    webhook_id = add_webhook(database, f"http://127.0.0.1:{receiver.port}/")
    other_id = add_webhook(database, f"http://127.0.0.1:{receiver.port}/other")
    told, failed, fresh = (add_delivery(database, webhook_id) for _ in range(3))
    add_delivery(database, other_id)
    rows(database, "UPDATE webhook_deliveries SET status = 'success', attempt = 1 WHERE event_id = %s", told)
    rows(database, "UPDATE webhook_deliveries SET status = 'dead_letter', attempt = 8 WHERE event_id = %s", failed)
    rows(database, "UPDATE webhook_deliveries SET status = 'dead_letter' WHERE webhook_id = %s", other_id)

    def count(*words: str) -> int:
        return int(parsed(run("replay", webhook_id[-12:], *words, "--json"))["replayed"])

    assert count("--failed") == 1
    with dispatching(database) as running:
        run_once(running)
    assert {call.id for call in receiver.calls} == {failed, fresh}
    assert count("--failed") == 0
    assert count("--since", "1h", "--failed") == 0
    assert count("--event", told[-12:]) == 1
    assert count("--since", "1h") == 2
    assert count("--since", "2999-01-01") == 0
    with dispatching(database) as running:
        run_once(running)
    assert Counter(call.id for call in receiver.calls) == {told: 1, failed: 2, fresh: 2}
    rows(database, "UPDATE webhook_deliveries SET status = 'pending', attempt = 3, attempted_at = now()")
    assert count("--since", "1h") == 0, "somebody has them in hand"
    rows(database, "UPDATE webhook_deliveries SET attempted_at = now() - %s", lease_of(CALL_S))
    assert count("--since", "1h") == 3
    rows(database, "UPDATE webhooks SET status = 'disabled'")
    rows(database, "UPDATE webhook_deliveries SET status = 'success'")
    assert "they wait, because the webhook is disabled" in run("replay", webhook_id, "--since", "1h").stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["add", "https://u:p@example.org/"], 64, "user name or password"),
        (["add", "http://127.0.0.1/"], 64, "begins with https://"),
        (["add", "https://localhost/"], 64, "localhost is at no public address"),
        (["add", "https://no-such-name.invalid/", "--events", "opened,contact.created"], 64, "contact.created; there"),
        (["add", "https://no-such-name.invalid/"], 0, "warning: no-such-name.invalid cannot be looked up"),
        (["remove", "abc"], 64, "at least its first 4 characters"),
        (["secret", "zzzz"], 64, "no webhook has an id that begins or ends with 'zzzz'"),
        (["replay", "ID"], 64, "say what to replay"),
        (["replay", "ID", "--event", "x"], 64, "is no id of an event"),
        (["replay", "ID", "--event", str(uuid4())], 64, "no event of this webhook has an id that begins or ends with"),
        (["replay", "ID", "--since", "soon"], 64, "is neither an age"),
        (["deliveries", "ID", "--status", "lost"], 64, "is not one of"),
    ],
)
def test_what_cannot_be_done_is_said(database: Database, run: Run, words: list[str], code: int, text: str) -> None:
    webhook_id = add_webhook(database, "https://example.org/")
    result = run(*(webhook_id if word == "ID" else word for word in words), allow_private=False)
    assert (result.exit_code, text in result.stderr) == (code, True), result.output
    assert len(rows(database, "SELECT 1 FROM webhooks")) == 1 + (code == 0)
    assert len(rows(database, 'SELECT 1 FROM "user"')) == (code == 0)


def test_beside_opensend_it_is_opensend_that_calls(beside: Database, tmp_path: Path) -> None:
    run = runner(beside, tmp_path, "opensend")
    webhook_id = add_webhook(beside, "https://example.org/")
    for words in (
        ["add", "https://example.org/"],
        ["secret", webhook_id],
        ["rotate", webhook_id],
        ["test", webhook_id],
        ["replay", webhook_id, "--failed"],
    ):
        result = run(*words)
        assert (result.exit_code, "OpenSend that calls webhooks" in result.stderr) == (64, True), words
    assert run("list").exit_code == 0
    assert run("deliveries", webhook_id).exit_code == 0
