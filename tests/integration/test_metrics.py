"""What processes show of what they count."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from opensend_milter.adapters import prometheus
from opensend_milter.adapters.postgres.backlog import PostgresBacklog
from opensend_milter.core import counting
from opensend_milter.core.errors import ConfigError, StoreUnavailable
from opensend_milter.core.rules import Rule
from opensend_milter.servers import metrics_page
from opensend_milter.servers.web import server
from tests.integration.gate_sides import HANG_UP, Gate, Upstream
from tests.integration.outbox import add_emails, rows
from tests.integration.private_postgres import Database
from tests.integration.serving import Serving, serving
from tests.log_scan import Forbidden, assert_clean, look_through
from tests.ports import free_port
from tests.waiting import await_true, patience_s

RAW = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
GOOD, WRONG = "os_" + "0" * 32, "os_" + "f" * 32
OUTCOMES = ("accepted", "refused", "outage", "throttled")
NOTHING: Mapping[str, str] = MappingProxyType({})
Samples = dict[tuple[str, ...], float]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    counting.count_in(counting.NOWHERE)


def samples(text: str) -> Samples:
    """Return value by name and label values, the latter in their names' order."""
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in parsed(text)
        for one in family.samples
    }


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patience_s()) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return samples(answer.read().decode())


@contextmanager
def metered(database: Database) -> Iterator[tuple[Serving, int]]:
    """Run two children that answer, and a page."""
    port = free_port()
    with serving(database.url, database.password_dir, metrics={"serve_port": port}) as served:
        yield served, port


def ask(
    app: ASGIApp, path: str, *, method: str = "GET", peer: str = "127.0.0.1", fields: Mapping[str, str] = NOTHING
) -> tuple[int, str]:
    """Ask as uvicorn would, from any address; return code and body."""
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        told.append(message)

    async def run() -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        with suppress(RuntimeError):  # passed on by Starlette for the server's log
            await app({**scope, "client": (peer, 50_000), "server": ("localhost", 80)}, receive, send)

    asyncio.run(run())
    return told[0]["status"], b"".join(one.get("body", b"") for one in told).decode()


def send(served: Serving, count: int, recipient: str = "to@example.net") -> list[str]:
    """Send on one connection; return the first letters of the answers."""
    with served.client() as client:
        return [client.message(served.key, RAW, recipient).command for _ in range(count)]


def milters(served: Serving) -> list[int]:
    """Return the children that answer Postfix: those that the parent told of."""
    beside = int(served.log.partition("(pid ")[2].partition(")")[0])
    return [pid for pid in served.children() if pid != beside]


def test_children_count_together_exactly_what_they_answered(database: Database) -> None:
    """Also what a child counted that was killed meanwhile, and what the one in its place counts."""
    with metered(database) as (served, port):
        first = scrape(port)
        assert first["opensend_messages_accepted_total", "smtp"] == 0
        assert first["opensend_messages_refused_total", "smtp", "recipient-suppressed"] == 0
        assert first["opensend_processes",] == 2

        def load(number: int) -> list[str]:
            return send(served, 10, "bad@example.net" if number % 4 == 0 else "to@example.net")

        with ThreadPoolExecutor(8) as pool:
            answers = [letter for some in pool.map(load, range(16)) for letter in some]
        assert (answers.count("d"), answers.count("y")) == (120, 40)
        counted = scrape(port)
        assert counted["opensend_messages_accepted_total", "smtp"] == 120
        assert counted["opensend_messages_refused_total", "smtp", "recipient-suppressed"] == 40
        assert counted["opensend_message_bytes_total",] == 120 * len(RAW)
        assert counted["opensend_accept_seconds_count",] == 160
        assert counted["opensend_accept_seconds_bucket", "+Inf"] == 160
        assert counted["opensend_build_info", "0.1.0"] == 1
        assert counted["process_resident_memory_bytes",] > 10_000_000

        before = milters(served)
        os.kill(before[0], signal.SIGKILL)
        while len(now := milters(served)) < 2 or before[0] in now:
            pass
        while served.log.count("ended: signal SIGKILL") < 1:
            pass
        letters = send(served, 5)
        assert letters == ["d"] * 5
        assert scrape(port)["opensend_messages_accepted_total", "smtp"] == 125
        assert served.stop() == 0
        assert "Traceback" not in served.log
        with pytest.raises(urllib.error.URLError):
            scrape(port)


def is_gone(port: int) -> bool:
    try:
        scrape(port)
    except OSError:
        return True
    return False


def test_page_ends_with_a_parent_that_is_killed(database: Database) -> None:
    """Whoever starts it again finds the port free."""
    with metered(database) as (served, port):
        scrape(port)
        served.process.kill()
        served.process.wait()
        await_true(lambda: is_gone(port), "the page has ended")


def test_a_full_directory_costs_the_counts_and_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "metrics"
    (tmp_path / "metrics").write_text("a file is where the directory is to be")
    together = prometheus.Together(counting.AT_THE_DOOR, place)
    counting.accepted("smtp", 1, 0.1)
    assert "this process does not count" in caplog.text
    assert b"opensend_build_info" in together.page()


def test_room_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    """A mapped page that finds no room on the disk would end the process; and there is enough of it for all series."""
    prometheus.Together(counting.AT_THE_DOOR, tmp_path / "metrics")
    for rule in Rule:
        counting.refused("smtp", rule, 0.1)
        counting.refused("http", rule, 0.1)
    files = list((tmp_path / "metrics").iterdir())
    assert len(files) == 2
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size == 65_536


def test_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    for _ in range(2):
        together = prometheus.Together(counting.AT_THE_DOOR, tmp_path / "metrics")
        counting.accepted("smtp", 1, 0.1)
        assert samples(together.page().decode())["opensend_messages_accepted_total", "smtp"] == 1


def test_the_worker_shows_what_waits(database: Database) -> None:
    """Late is what is due; what is scheduled is not."""
    first, second, third, _ = add_emails(database, 4)
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now() - interval '1 hour' WHERE email_id = %s", first)
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now() + interval '1 day' WHERE email_id = %s", second)
    rows(database, "UPDATE opensend_milter.jobs SET state = 'uncertain' WHERE email_id = %s", third)
    port = free_port()
    backlog = PostgresBacklog(database.url_for("opensend_worker"), name="opensend-backlog", timeout_s=patience_s())
    with metrics_page.shown(port, prometheus.alone(counting.IN_DELIVERY), key="metrics.worker_port"):
        assert backlog.step() >= 15
        shown = scrape(port)
        assert [shown["opensend_jobs", state] for state in ("waiting", "uncertain", "claimed")] == [3, 1, 0]
        assert 3600 <= shown["opensend_oldest_due_seconds",] < 7200
        rows(database, "DELETE FROM opensend_milter.jobs")
        backlog.step()
        emptied = scrape(port)
        assert emptied["opensend_jobs", "waiting"] == emptied["opensend_oldest_due_seconds",] == 0
        database.cluster.stop()
        with pytest.raises(StoreUnavailable):
            backlog.step()
        assert scrape(port)["opensend_jobs", "waiting"] == 0
    backlog.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"\0" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/9\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n"],
)
def test_who_says_something_else_is_no_trouble(said: bytes) -> None:
    port = free_port()
    with metrics_page.shown(port, lambda: b"fine 1\n", key="metrics.worker_port"):
        with socket.create_connection(("127.0.0.1", port), timeout=patience_s()) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert b"fine" not in stranger.recv(10_000)
        with socket.create_connection(("127.0.0.1", port)):  # it says nothing, and nobody waits for it
            assert scrape(port) == {("fine",): 1}


WAITS = """
import os, signal, sys
from opensend_milter.servers.metrics_page import shown
with shown(int(sys.argv[1]), lambda: b"", key="metrics.worker_port"):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigwait({signal.SIGTERM})
print("heard")
"""


def test_the_page_takes_no_signal_from_who_waits_for_it() -> None:
    """A worker waits for SIGTERM to finish what is in hand; a thread that heard it first would end it at once."""
    done = subprocess.run([sys.executable, "-c", WAITS, str(free_port())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n")


def test_a_page_that_cannot_be_written_is_503() -> None:
    port = free_port()

    def page() -> bytes:
        raise RuntimeError("no")

    with (
        metrics_page.shown(port, page, key="metrics.worker_port"),
        pytest.raises(urllib.error.HTTPError) as raised,
    ):
        scrape(port)
    assert raised.value.code == 503
    raised.value.close()


def test_a_port_in_use_is_said_by_its_name() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"metrics\.serve_port: cannot listen on 127\.0\.0\.1 port"),
        metrics_page.shown_beside(taken.getsockname()[1], lambda: b"", key="metrics.serve_port"),
    ):
        pass


@pytest.mark.parametrize(
    ("peer", "fields", "networks", "code"),
    [
        ("127.0.0.1", {}, ["127.0.0.0/8", "::1/128"], 200),
        ("::1", {}, ["127.0.0.0/8", "::1/128"], 200),
        ("::ffff:127.0.0.1", {}, ["127.0.0.0/8"], 200),
        ("192.0.2.1", {}, ["127.0.0.0/8", "::1/128"], 403),
        ("192.0.2.1", {}, ["192.0.2.0/24"], 200),
        ("127.0.0.1", {}, [], 403),
        ("192.0.2.1", {"X-Forwarded-For": "127.0.0.1"}, ["127.0.0.0/8"], 403),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, ["127.0.0.0/8"], 403),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, ["127.0.0.0/8"], 403),
        ("testclient", {}, ["0.0.0.0/0", "::/0"], 403),
    ],
)
def test_only_monitoring_networks_read_it_over_http(
    peer: str, fields: dict[str, str], networks: Sequence[str], code: int
) -> None:
    routes = metrics_page.routes(prometheus.alone(counting.OVER_HTTP), networks)
    told, body = ask(server.application(routes), "/metrics", peer=peer, fields=fields)
    assert told == code
    if code == 200:
        assert samples(body)["opensend_build_info", "0.1.0"] == 1
    else:
        assert json.loads(body)["code"] == "forbidden"


def test_requests_are_counted_by_the_route_that_answered() -> None:
    """A path that was asked for never makes a series of its own."""

    def broken(_: Request) -> PlainTextResponse:
        raise RuntimeError

    routes = [
        Route("/v1/things/{thing}", lambda _: PlainTextResponse("ok")),
        Route("/broken", broken),
    ]
    page = prometheus.alone(counting.OVER_HTTP)
    app = server.application(routes)
    for path in ("/v1/things/1", "/v1/things/2", "/nothing/a", "/nothing/b", "/broken"):
        ask(app, path)
    for method in ("POST", "BREW"):
        ask(app, "/v1/things/1", method=method)
    counted = {key[1:]: value for key, value in samples(page().decode()).items() if key[0].endswith("requests_total")}
    assert counted == {
        ("200", "GET", "/v1/things/{thing}"): 2,
        ("404", "GET", "other"): 2,
        ("503", "GET", "/broken"): 1,
        ("405", "POST", "/v1/things/{thing}"): 1,
        ("405", "other", "/v1/things/{thing}"): 1,
    }
    assert samples(page().decode())["opensend_http_request_seconds_count", "/v1/things/{thing}"] == 4


@pytest.fixture
def gate_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="os-gate-", dir="/tmp"))  # a socket's path is short
    yield directory
    shutil.rmtree(directory)


def test_the_gate_counts_and_tells_how_logins_end(gate_dir: Path) -> None:
    """An outage is no wrong key: fail2ban and the alerts depend on it."""
    gate, port = Gate(gate_dir), free_port()
    gate.write_config(metrics={"auth_port": port}, limits={"failed_per_minute": 3})
    with gate.running():
        upstream = Upstream(gate.dovecot_socket)
        client = gate.client()
        assert scrape(port)["opensend_logins_total", "throttled"] == 0
        upstream.answer = b"OK\t1\tuser=the-key\n"
        assert client.plain(GOOD).startswith("OK")
        client.auth("LOGIN")
        client.go_on(b"the-name-" + GOOD.encode())
        assert client.go_on(GOOD.encode()).startswith("OK")
        upstream.answer = b"FAIL\t1\tuser=apikey\n"
        assert client.plain(WRONG) == client.refused
        assert client.auth("PLAIN", "no base64 " + WRONG) == client.refused
        assert client.auth(f"X-{WRONG}\x7f") == client.refused
        counted = scrape(port)
        assert counted["opensend_auth_connections",] == 1
        assert client.plain(GOOD) == HANG_UP
        client.close()
        upstream.close()
        gate.dovecot_socket.unlink()
        shown = scrape(port)
        assert shown["opensend_auth_connections",] == 0
        assert [shown["opensend_logins_total", one] for one in OUTCOMES] == [2, 3, 0, 1]
        assert [shown["opensend_login_seconds_count", one] for one in OUTCOMES] == [2, 3, 0, 1]
        assert shown["opensend_build_info", "0.1.0"] == 1
    told = re.findall(r" (\w+) opensend_milter\.mail\[\d+\]: login (.*) delay_ms=\d+\.\d$", gate.log, re.MULTILINE)
    assert told == [
        ("DEBUG", "outcome=accepted client=127.0.0.1 mechanism=PLAIN"),
        ("DEBUG", "outcome=accepted client=127.0.0.1 mechanism=LOGIN"),
        ("INFO", "outcome=refused client=127.0.0.1 mechanism=PLAIN"),
        ("INFO", "outcome=refused client=127.0.0.1 mechanism=PLAIN"),
        ("INFO", "outcome=refused client=127.0.0.1 mechanism=other"),
        ("INFO", "outcome=throttled client=127.0.0.1 mechanism=PLAIN"),
    ]
    assert_clean(look_through([gate_dir / "gate.log"], Forbidden(addresses=True)))


def test_the_gate_tells_an_outage_from_a_wrong_key(gate_dir: Path) -> None:
    gate, port = Gate(gate_dir), free_port()
    gate.write_config(metrics={"auth_port": port}, log={"format": "json"})
    with gate.running():
        client = gate.client()
        assert client.plain(WRONG) == HANG_UP
        client.close()
        shown = scrape(port)
        assert [shown["opensend_logins_total", one] for one in OUTCOMES] == [0, 0, 1, 0]
    lines = [json.loads(line) for line in gate.log.splitlines()]
    (told,) = [line for line in lines if "outcome" in line]
    assert (told["outcome"], told["client"], told["mechanism"], told["level"]) == (
        "outage",
        "127.0.0.1",
        "PLAIN",
        "info",
    )
    assert told["delay_ms"] >= 0
    assert WRONG not in gate.log


def test_each_request_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Its route as it was declared: what a stranger writes into a path or a method stays out of the log."""
    caplog.set_level(logging.DEBUG, "opensend_milter.mail")
    app = server.application(
        [
            Route("/v1/things/{thing}", lambda _: PlainTextResponse("ok")),
            Route("/healthz", lambda _: PlainTextResponse("ok")),
        ]
    )
    for path, method in (("/v1/things/a@example.org", "GET"), (f"/{WRONG}", "GET"), ("/healthz", "GET"), ("/", "BREW")):
        ask(app, path, method=method, peer="2001:db8::7")
    told = [(record.levelname, re.sub(r"req_\w{26}|\d+\.\d$", "N", record.getMessage())) for record in caplog.records]
    assert told == [
        ("INFO", "N: method=GET route=/v1/things/{thing} code=200 peer=2001:db8::7 delay_ms=N"),
        ("INFO", "N: method=GET route=other code=404 peer=2001:db8::7 delay_ms=N"),
        ("DEBUG", "N: method=GET route=/healthz code=200 peer=2001:db8::7 delay_ms=N"),
        ("INFO", "N: method=other route=other code=404 peer=2001:db8::7 delay_ms=N"),
    ]


def test_threads_lose_no_count() -> None:
    page = prometheus.alone(counting.AT_THE_DOOR)

    def count() -> None:
        for _ in range(1_000):
            counting.accepted("smtp", 10, 0.01)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(page().decode())["opensend_messages_accepted_total", "smtp"] == 8_000
