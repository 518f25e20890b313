"""SIGHUP to each daemon: what is in force afterwards, what the log says, and that nobody is disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gate_sides import HANG_UP, Client, Upstream
from tests.integration.private_postgres import Database
from tests.integration.serving import Serving, serving
from tests.integration.test_http_server import (
    MAIL,
    Front,
    add_key,
    begin,
    begun,
    daemon,
    front,
    stored,
)
from tests.ports import free_port
from tests.waiting import await_true, patience_s

DAEMONS = ("serve", "worker", "http", "auth-gate")
NO_SENDER: dict[str, Any] = {"from": None}
RAW = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A unix socket path holds 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="os-r-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def sections(place: Path) -> dict[str, dict[str, object]]:
    """What any of the daemons needs to run for itself."""
    return {
        "milter": {"socket": str(place / "m"), "spool_dir": str(place / "spool"), "processes": 1},
        "auth": {"socket": str(place / "a"), "dovecot_socket": str(place / "dovecot")},
        "http": {"port": free_port()},
    }


# ---------------------------------------------------------------------- every daemon


@pytest.mark.parametrize("command", DAEMONS)
def test_every_daemon_says_what_changed_and_goes_on(database: Database, place: Path, command: str) -> None:
    """A bad file changes nothing; secrets stay where they are."""
    with daemon(command, database, **sections(place)) as running:
        assert "read again, nothing has changed" in running.reload()

        running.write(smtp={"hostname": "no name"}, relay={"timeout_s": "soon"})
        told = running.reload()
        assert "not reloaded, the old configuration stays: smtp.hostname: expected a host name" in told
        assert "not reloaded, the old configuration stays: relay.timeout_s: expected a number" in told
        (running.directory / "config.yaml").write_text("{")
        assert "not reloaded, the old configuration stays" in running.reload()

        secret = str(place / "hush")
        running.write(
            smtp={"hostname": "mx.example.org"},
            relay={"timeout_s": 60, "username": "me", "password_file": secret},
            log={"level": "debug"},
        )
        told = running.reload()
        assert 'log.level: "info" -> "debug" (in force)' in told
        assert 'smtp.hostname: "" -> "mx.example.org" (' in told
        assert "Postfix must be rendered again)" in told
        assert "relay.password_file: ******** -> ******** (" in told
        assert secret not in running.log
        assert "timeout_s" not in told
        running.write(log={"level": "error"})
        assert 'log.level: "debug" -> "error" (in force)' in running.reload()
        # Children say that they have reloaded when they have, the one before this too.
        assert [line for line in running.reload().splitlines() if not line.endswith(": reloaded")] == []
        assert running.stop() == 0


@pytest.mark.parametrize("command", DAEMONS)
def test_a_reload_that_comes_too_early_waits(database: Database, place: Path, command: str) -> None:
    """It would end a process that cannot follow it yet."""
    given = {"database": {"password_dir": str(database.password_dir)}, **sections(place)}
    (place / "config.yaml").write_text(json.dumps(given))
    process = begin(command, place, os.environ | {"DATABASE_URL": database.url})
    try:
        await_true(lambda: holds_hangup(process.pid), "it holds SIGHUP")
        process.send_signal(signal.SIGHUP)
        await_true(lambda: "read again, nothing has changed" in (place / "log").read_text(), "it reads again")
    finally:
        process.terminate()
        assert process.wait(patience_s()) == 0


def holds_hangup(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << (signal.SIGHUP - 1))


# ---------------------------------------------------------------------- http


def answer_to(served: Front, key: str, **changed: object) -> tuple[int, str]:
    """Send one message; return status and code."""
    body = json.loads(MAIL) | changed
    status, answer, _ = served.ask("POST", "/v1/send", json.dumps(body).encode(), Authorization=f"Bearer {key}")
    return status, str(answer.get("code", ""))


def test_http_goes_on_with_what_its_section_says(database: Database) -> None:
    key = add_key(database)
    several = json.dumps({"messages": [json.loads(MAIL)] * 2}).encode()

    def bulk() -> int:
        return served.ask("POST", "/v1/send-bulk", several, Authorization=f"Bearer {key}")[0]

    with front(database) as served:
        running = served.daemon
        assert answer_to(served, key, **NO_SENDER)[0] == 400
        assert bulk() == 202
        assert served.ask("GET", "/metrics")[0] == 200
        before = running.config["http"]["port"]
        running.write(
            http={
                "default_from": "app@example.org",
                "max_bulk_messages": 1,
                "monitoring": "192.0.2.0/24",
                "port": free_port(),
            }
        )
        told = running.reload()
        assert 'http.default_from: "" -> "<address>" (in force)' in told
        assert "http.max_bulk_messages: 100 -> 1 (in force)" in told
        assert 'http.monitoring: "127.0.0.0/8 ::1/128" -> "192.0.2.0/24" (in force)' in told
        assert f"http.port: {before} -> {running.config['http']['port']} (needs a restart)" in told
        assert answer_to(served, key, **NO_SENDER) == (202, "")
        assert bulk() == 413
        assert served.ask("GET", "/metrics")[0] == 403
        assert '"maxItems": 1' in json.dumps(served.ask("GET", "/openapi.json")[1])
        # What needs a restart is said until it has had one, and no more when it is taken back.
        assert "(needs a restart)" in running.reload()
        running.write(http={"port": before})
        assert "nothing has changed" in running.reload()


def test_http_goes_on_with_other_sizes(database: Database) -> None:
    key = add_key(database)
    with front(database) as served:
        assert answer_to(served, key, to=["a@example.net", "b@example.net"]) == (202, "")
        served.daemon.write(size={"max_recipients": 1, "max_message_bytes": 2_048})
        assert "size.max_recipients" in served.daemon.reload()
        assert answer_to(served, key, to=["a@example.net", "b@example.net"])[0] == 400
        assert answer_to(served, key, body="x" * 10_000) == (413, "payload_too_large")
        assert answer_to(served, key, body="x" * 2_000) == (413, "payload_too_large")  # as JSON it is small enough
        assert answer_to(served, key) == (202, "")
        assert stored(database) == 2


def test_http_goes_on_with_other_limits(database: Database) -> None:
    key = add_key(database)
    with front(database, limits={"key_per_minute": 3}) as served:
        assert [answer_to(served, key)[0] for _ in range(5)] == [202] * 3 + [429] * 2
        served.daemon.write(limits={"key_per_minute": 0, "failed_per_minute": 1})
        assert "limits.key_per_minute: 3 -> 0 (in force)" in served.daemon.reload()
        assert [answer_to(served, key)[0] for _ in range(5)] == [202] * 5
        assert [answer_to(served, "os_wrong")[0] for _ in range(3)] == [403, 429, 429]


def test_http_believes_other_proxies(database: Database) -> None:
    key = add_key(database)
    heard = {"X-Forwarded-For": "192.0.2.9", "X-Real-IP": "192.0.2.10", "Authorization": f"Bearer {key}"}

    def client() -> str:
        assert served.ask("POST", "/v1/send", MAIL, **heard)[0] == 202
        with database.connect() as connection:
            row = connection.execute(
                "SELECT client_address FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 1"
            ).fetchone()
        assert row
        return str(row[0])

    with front(database) as served:
        assert client() == "127.0.0.1"
        served.daemon.write(http={"trusted_proxies": "127.0.0.0/8"})
        served.daemon.reload()
        assert client() == "192.0.2.9"
        served.daemon.write(http={"client_header": "x-real-ip"})
        served.daemon.reload()
        assert client() == "192.0.2.10"


@pytest.mark.case(60)
def test_reloads_under_load_are_noticed_by_nobody(database: Database) -> None:
    """Also not by a request that had begun before."""
    key = add_key(database)
    statuses: list[int] = []
    stop = threading.Event()
    with front(database) as served, begun(served, key) as slow:

        def load() -> None:
            while not stop.is_set():
                statuses.append(served.send(key))

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            for number in range(10):
                sent = len(statuses)
                served.daemon.write(http={"max_bulk_messages": number + 1})
                assert "(in force)" in served.daemon.reload()
                await_true(lambda sent=sent: len(statuses) > sent + 4, "more are answered")  # type: ignore[misc]  # a lambda's default
        finally:
            stop.set()
            for client in clients:
                client.join()
        slow.sendall(MAIL[10:])
        assert slow.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert set(statuses) == {202}
        assert stored(database) == len(statuses) + 1


# ---------------------------------------------------------------------- auth-gate, serve


def test_the_gate_goes_on_with_other_limits(database: Database, place: Path) -> None:
    """On a connection that was open before, too."""
    upstream = Upstream(place / "dovecot")
    upstream.answer = b"FAIL\t1\tuser=apikey\n"
    try:
        with daemon("auth-gate", database, **sections(place)) as running:
            client = Client(place / "a")
            assert client.plain("os_wrong") == client.refused
            running.write(limits={"failed_per_minute": 1}, auth={"timeout_s": 1, "socket": str(place / "b")})
            told = running.reload()
            assert "limits.failed_per_minute: 60 -> 1 (in force)" in told
            assert "auth.timeout_s: 8.0 -> 1.0 (in force)" in told
            assert "auth.socket" in told
            assert "(needs a restart; Postfix must be rendered again)" in told
            assert [client.plain("os_wrong") == client.refused, client.plain("os_wrong")] == [True, HANG_UP]
            client.close()
            running.write(limits={"failed_per_minute": 0})
            running.reload()
            upstream.answer = None
            client = Client(place / "a")
            assert client.plain("os_wrong") == HANG_UP
            assert "no answer within 1 s" in running.log
            client.close()
    finally:
        upstream.close()


def children_reloaded(served: Serving) -> int:
    return sum(line.endswith(": reloaded") for line in served.log.splitlines())


def test_serve_goes_on_with_other_limits(database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        config = json.loads((served.directory / "config.yaml").read_text())
        config |= {"limits": {"key_per_minute": 2}, "log": {"level": "debug"}}
        config["milter"] |= {"processes": 3, "spool_dir": str(served.directory / "other" / "spool")}
        (served.directory / "config.yaml").write_text(json.dumps(config))
        served.process.send_signal(signal.SIGHUP)
        await_true(lambda: children_reloaded(served) == 2, "both children reload")
        assert "limits.key_per_minute: 60000 -> 2 (in force)" in served.log
        assert "milter.processes: 2 -> 3 (needs a restart)" in served.log
        assert (served.directory / "other" / "spool").is_dir()
        with served.client() as client:
            answers = [client.message(served.key, RAW, "to@example.net") for _ in range(3)]
        assert [answer.command for answer in answers[:2]] == ["d", "d"]
        assert answers[2].code == 451


@pytest.mark.case(82)
def test_however_often_serve_reloads_under_load_nobody_is_put_off(database: Database) -> None:
    """What was open before is let go at once: the role may have 32 connections."""
    reloads = 25
    stop = threading.Event()
    answers: list[str] = []
    with serving(database.url, database.password_dir, milter={"processes": 1}) as served:
        config = json.loads((served.directory / "config.yaml").read_text())

        def send() -> None:
            with served.client() as client:
                while not stop.is_set():
                    answers.append(client.message(served.key, RAW, "to@example.net").command)

        sessions = [threading.Thread(target=send) for _ in range(3)]
        for session in sessions:
            session.start()
        try:
            for number in range(reloads):
                config["limits"] = {"key_per_minute": 100_000 + number}
                (served.directory / "config.yaml").write_text(json.dumps(config))
                sent = len(answers)
                served.process.send_signal(signal.SIGHUP)
                await_true(lambda number=number: children_reloaded(served) > number, "it reloads")  # type: ignore[misc]
                await_true(lambda sent=sent: len(answers) > sent + 3, "more are answered")  # type: ignore[misc]
        finally:
            stop.set()
            for session in sessions:
                session.join()
        assert set(answers) == {"d"}
        await_true(lambda: connections(served) <= len(("small", "large", "rates")), "the old ones are closed")


def connections(served: Serving) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'opensend_milter' AND datname = current_database()"
    ((count,),) = served.rows(query)
    return int(str(count))


def test_a_child_that_takes_a_dead_ones_place_reads_no_file(database: Database) -> None:
    """A file in the middle of an edit must not keep it from answering."""
    with serving(database.url, database.password_dir, milter={"processes": 1}) as served:
        (served.directory / "config.yaml").write_text("milter: {proc")
        (before,) = served.children()
        os.kill(before, signal.SIGKILL)
        await_true(lambda: len(served.children()) == 1 and served.children() != [before], "another child")
        with served.client() as client:
            assert client.message(served.key, RAW, "to@example.net").command == "d"
        assert "Traceback" not in served.log


def test_a_child_goes_on_with_what_was_checked_not_with_what_the_file_says_later(database: Database) -> None:
    """One that comes to it late finds the next edit in the file, or half of it."""
    with serving(database.url, database.password_dir, milter={"processes": 1}) as served:
        (child,) = served.children()
        os.kill(child, signal.SIGSTOP)
        config = json.loads((served.directory / "config.yaml").read_text())
        for limit in (3, 2):
            config["limits"] = {"key_per_minute": limit}
            (served.directory / "config.yaml").write_text(json.dumps(config))
            served.process.send_signal(signal.SIGHUP)
            await_true(lambda limit=limit: f"-> {limit} (in force)" in served.log, "it is checked")  # type: ignore[misc]
        (served.directory / "config.yaml").write_text("milter: {proc")
        os.kill(child, signal.SIGCONT)
        await_true(lambda: children_reloaded(served) == 2, "the child reloads")
        with served.client() as client:
            answers = [client.message(served.key, RAW, "to@example.net") for _ in range(3)]
        assert [answer.code for answer in answers[2:]] == [451]
        assert [answer.command for answer in answers[:2]] == ["d", "d"]
        assert "not reloaded" not in served.log


def test_a_spool_that_cannot_be_made_is_refused(database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        config = json.loads((served.directory / "config.yaml").read_text())
        config["milter"] |= {"spool_dir": "/proc/nowhere/spool"}
        (served.directory / "config.yaml").write_text(json.dumps(config))
        served.process.send_signal(signal.SIGHUP)
        await_true(
            lambda: "the old configuration stays: milter.spool_dir: /proc/nowhere/spool" in served.log, "it is refused"
        )
        assert children_reloaded(served) == 0
