"""The HTTP process over a socket: what SNS posts, what strangers post, and how it stops."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from opensend_milter.adapters.aws.sns import SnsTopics
from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBox
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.submissions import PostgresSubmissions
from opensend_milter.config import Http
from opensend_milter.core.errors import TemporaryError
from opensend_milter.servers.web import events, health, server as http_server
from tests.asking import ask
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_sns import (
    CERTIFICATE_URL,
    EMAIL_ID,
    TOPIC,
    altered,
    certificate,
    notification,
    ses_event,
)
from tests.log_scan import Forbidden, assert_clean, look_through
from tests.waiting import await_of, await_true, patience_s

ROOT = Path(__file__).parents[2]
JSON = dict[str, Any]


@dataclass(slots=True)
class Serving:
    """A running HTTP process."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, JSON]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience_s())
        try:
            connection.request(method, path, body, {"Content-Type": "text/plain; charset=UTF-8"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def post(self, body: bytes) -> int:
        return self.ask("POST", events.SES_PATH, body)[0]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s())


@contextmanager
def serving(database: Database, directory: Path) -> Iterator[Serving]:
    """Run it in a process of its own, as its own role."""
    info = conninfo_for(database.url, database.password_dir, "opensend_http")
    (directory / "sns.pem").write_bytes(certificate(begins_at=datetime.now(UTC) - timedelta(days=1)))
    log_path = directory / "http.log"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {"info": info, "port": port, "certificate": str(directory / "sns.pem")}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.test_http_events", json.dumps(given)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=log,
            cwd=ROOT,
        )
    running = Serving(process, port, log_path)
    try:
        await_of(process, lambda: "READY" in running.log, lambda: running.log)
        yield running
        assert "Traceback" not in running.log, running.log
        assert_clean(look_through([log_path], Forbidden(addresses=True)))
    finally:
        process.kill()
        process.wait()


def _main(given: JSON) -> None:
    import logging  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    box = PostgresFeedbackBox(given["info"], name="opensend-http", timeout_s=patience_s())
    desk = PostgresSubmissions(Pool(given["info"], connections=1, timeout_s=patience_s()))

    def fetch(url: str) -> bytes:
        if url != CERTIFICATE_URL:
            raise TemporaryError("HTTP 404")
        return Path(given["certificate"]).read_bytes()

    listening = SnsTopics([TOPIC], fetch=fetch, clock=lambda: datetime.now(UTC))

    def hear(body: bytes) -> None:
        report = listening.heard(body)
        if report:
            box.put([report])

    http_server.run(
        Http(port=given["port"]),
        [*events.routes(hear), *health.routes(desk.check)],
        lambda: print("READY", file=sys.stderr, flush=True),  # noqa: T201
        max_body_bytes=300_000,
    )


@pytest.fixture
def server(database: Database, tmp_path: Path) -> Iterator[Serving]:
    with serving(database, tmp_path) as running:
        yield running


def now() -> datetime:
    return datetime.now(UTC)


def test_what_sns_posts_is_put_down(database: Database, server: Serving) -> None:
    """As a role that may do nothing else with it; what is no notification of ours is told why."""
    assert server.ask("GET", health.HEALTH_PATH) == (200, {"status": "ok"})
    assert server.post(notification(at=now())) == 200
    assert server.post(notification(at=now(), version="2", Message=ses_event("Open"))) == 200
    found = rows(database, "SELECT kind, source_id, email_id::text FROM opensend_milter.feedback ORDER BY id")
    assert found == [
        ("delivered", "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", EMAIL_ID),
        ("opened", "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", EMAIL_ID),
    ]
    for body, status in [
        (altered(notification(at=now()), MessageId="x"), 403),
        (notification(at=now(), TopicArn=TOPIC + "x"), 403),
        (notification(at=now() - timedelta(hours=2)), 403),
        (b"hi", 400),
        (b"", 400),
        (b"\xff" * 1_000, 400),
        (ses_event().encode(), 400),
        (b"[" * 200_000, 400),
        (b"x" * 300_001, 413),
        (notification(at=now(), SigningCertURL=CERTIFICATE_URL.replace("-0", "-1")), 503),
    ]:
        assert server.post(body) == status, body[:200]
    assert rows(database, "SELECT count(*) FROM opensend_milter.feedback") == [(2,)]
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", events.SES_PATH, 405, "method_not_allowed"),
        ("POST", health.HEALTH_PATH, 405, "method_not_allowed"),
        ("POST", events.SES_PATH, 400, "bad_request"),
    ],
)
def test_every_error_has_one_shape(server: Serving, method: str, path: str, status: int, code: str) -> None:
    answered, body = server.ask(method, path, b"{}" if method == "POST" else None)
    assert answered == status
    assert body.keys() == {"status", "code", "message", "request_id", "retryable", "name", "statusCode"}
    assert (body["status"], body["code"], body["statusCode"]) == ("error", code, status)
    assert not body["retryable"]


def test_a_report_that_is_packed_is_refused_as_that(server: Serving) -> None:
    answer = ask(server.port, "POST", events.SES_PATH, notification(at=now()), Content_Encoding="gzip")
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.case(56)
def test_with_the_database_away_sns_is_asked_to_come_again(database: Database, server: Serving) -> None:
    """And it is served again as soon as the database is back."""
    body = notification(at=now())
    assert server.post(body) == 200
    database.cluster.stop()
    assert server.ask("GET", health.READY_PATH)[0] == 503
    status, answer = server.ask("POST", events.SES_PATH, body)
    assert (status, answer["code"]) == (503, "unavailable")
    assert "postgres" not in json.dumps(answer).lower()
    database.cluster.start()
    assert server.post(body) == 200
    assert rows(database, "SELECT count(*) FROM opensend_milter.feedback") == [(2,)]


def test_a_request_in_hand_is_answered_before_the_end(database: Database, server: Serving) -> None:
    """SIGTERM in the middle of a request: nothing new is let in, what has begun is finished, and the code is 0."""
    body = notification(at=now())
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience_s()) as begun:
        begun.sendall(b"POST /events/ses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100])
        assert server.ask("GET", health.HEALTH_PATH)[0] == 200
        server.process.send_signal(signal.SIGTERM)
        _await_closed(server.port)
        begun.sendall(body[100:])
        assert begun.recv(1_000).startswith(b"HTTP/1.1 200 ")
    assert server.process.wait(patience_s()) == 0
    assert rows(database, "SELECT count(*) FROM opensend_milter.feedback") == [(1,)]


def _await_closed(port: int) -> None:
    def is_closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=patience_s()).close()
        except OSError:
            return True
        return False

    await_true(is_closed, "nobody listens any more")


def test_a_stop_before_it_has_begun_counts() -> None:
    """Between our start and the server's own listening for signals none is lost."""
    server = uvicorn.Server(uvicorn.Config(http_server.application([]), log_config=None))
    before = signal.getsignal(signal.SIGTERM)
    with http_server._stopping(server):
        signal.raise_signal(signal.SIGTERM)
    assert server.should_exit
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_port_that_is_taken_is_named(server: Serving) -> None:
    from opensend_milter.core.errors import ConfigError  # noqa: PLC0415

    with pytest.raises(ConfigError, match=r"http\.port.*in use"):
        http_server.run(Http(port=server.port), [], lambda: None)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
