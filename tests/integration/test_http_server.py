"""The HTTP process as it is installed: where it listens, with which certificate, how much at once, and how it ends."""

from __future__ import annotations

import asyncio
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from uvicorn.server import ServerState

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.config import Http
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.certificates import make_certificate
from opensend_milter.servers.web import connections, server
from opensend_milter.servers.web.room import MOST_REQUESTS
from tests.integration.private_postgres import Database
from tests.ports import free_port
from tests.waiting import await_true, patience_s

_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None)
JSON = dict[str, Any]
MAIL = json.dumps({"from": "app@example.org", "to": "to@example.net", "subject": "hi", "body": "hello"}).encode()
REQUEST = (
    "POST /v1/send{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


@dataclass(slots=True)
class Daemon:
    """One of our processes, its configuration, its log, and what it tells systemd."""

    command: str
    directory: Path
    config: dict[str, dict[str, object]]
    environ: Mapping[str, str]
    notices: socket.socket
    process: subprocess.Popen[bytes]
    _read: int = 0

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def write(self, **sections: dict[str, object]) -> None:
        """Change the configuration file."""
        for section, values in sections.items():
            self.config[section] = self.config.get(section, {}) | values
        (self.directory / "config.yaml").write_text(json.dumps(self.config))

    def reload(self) -> str:
        """Send SIGHUP; return what is logged until it is over."""
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        told = self.notices.recv(4096)
        assert told.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert abs(int(told.rpartition(b"=")[2]) / 1e6 - time.monotonic()) < patience_s()
        assert self.notices.recv(4096) == b"READY=1"
        return self.log[before:]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s())


@contextmanager
def daemon(command: str, database: Database, **sections: dict[str, object]) -> Iterator[Daemon]:
    """Start one as systemd does, and wait until it is ready."""
    directory = Path(tempfile.mkdtemp(prefix="os-d-", dir="/tmp"))
    directory.chmod(0o755)
    config: dict[str, dict[str, object]] = {"database": {"password_dir": str(database.password_dir)}, **sections}
    environ = {**os.environ, "DATABASE_URL": database.url, "NOTIFY_SOCKET": str(directory / "notify")}
    (directory / "config.yaml").write_text(json.dumps(config))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(directory / "notify"))
        notices.settimeout(patience_s())
        process = begin(command, directory, environ)
        running = Daemon(command, directory, config, environ, notices, process)
        try:
            assert said(notices, running) == b"READY=1"
            yield running
            assert "Traceback" not in running.log, running.log
        finally:
            process.kill()
            process.wait(patience_s())
            shutil.rmtree(directory)


def begin(command: str, directory: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "opensend_milter", command, "--config", str(directory / "config.yaml")],
            env=environ,
            stderr=log,
        )


def said(notices: socket.socket, running: Daemon) -> bytes:
    try:
        return notices.recv(4096)
    except TimeoutError:
        raise AssertionError(running.log) from None


def add_key(database: Database, domain: str = "example.org") -> str:
    """Make a user with a verified domain; return his secret."""
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        user_id = store.ensure_user("u")
        key = store.create_key(name="k", user_id=user_id, permission="full_access", domain=None)
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES (%s, 'verified', %s)", (domain, user_id))
    return key.token


@dataclass(slots=True)
class Front:
    """A running HTTP process and how to reach it."""

    daemon: Daemon
    connect: Callable[[], socket.socket]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, JSON, JSON]:
        """Make one request on a connection of its own; return status, what was answered, and the fields."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, json.loads(content) if is_json else {}, dict(answer.headers.items())
        finally:
            connection.close()

    def send(self, key: str, body: bytes = MAIL) -> int:
        return self.ask("POST", "/v1/send", body, Authorization=f"Bearer {key}")[0]


@contextmanager
def front(database: Database, **sections: dict[str, object]) -> Iterator[Front]:
    """Run it on a port."""
    port = free_port()
    given = sections | {"http": {"port": port} | sections.get("http", {})}
    with daemon("http", database, **given) as running:
        yield Front(running, lambda: socket.create_connection(("127.0.0.1", port), timeout=patience_s()))


@contextmanager
def on_socket(database: Database) -> Iterator[tuple[Front, Path]]:
    """Run it on a unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="os-h-", dir="/tmp"))
    path = directory / "http.sock"

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(patience_s())
        client.connect(str(path))
        return client

    try:
        with daemon("http", database, http={"socket": str(path), "socket_group": "nogroup"}) as running:
            yield Front(running, connect), path
    finally:
        shutil.rmtree(directory)


def stored(database: Database) -> int:
    with database.connect() as connection:
        row = connection.execute("SELECT count(*) FROM emails").fetchone()
    assert row
    return int(row[0])


# ---------------------------------------------------------------------- where it listens


def test_a_unix_socket_takes_messages_and_is_for_its_group(database: Database) -> None:
    key = add_key(database)
    with on_socket(database) as (served, path):
        assert path.stat().st_mode & 0o777 == 0o660
        if not os.geteuid():
            assert path.group() == "nogroup"
        assert served.ask("GET", "/healthz")[:2] == (200, {"status": "ok"})
        assert served.send(key) == 202
        assert stored(database) == 1
        assert f"listening on {path}" in served.daemon.log
        assert served.daemon.stop() == 0
        assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(database: Database) -> None:
    with on_socket(database) as (served, path):
        running = served.daemon
        second = begin("http", running.directory, running.environ)
        assert second.wait(patience_s()) == 78
        assert f"http.socket: {path}: another program listens there" in running.log
        assert served.ask("GET", "/healthz")[0] == 200
        running.process.kill()
        running.process.wait(patience_s())
        assert path.exists()
        running.process = begin("http", running.directory, running.environ)
        assert said(running.notices, running) == b"READY=1"
        assert served.ask("GET", "/healthz")[0] == 200
        # One that took our place is not ours to remove.
        path.unlink()
        path.write_text("another's")
        assert running.stop() == 0
        assert path.read_text() == "another's"


@pytest.mark.parametrize(
    ("name", "group", "told"),
    [
        ("file", "nogroup", "http.socket: {place}/file: exists and is no socket"),
        ("/proc/nowhere/s", "nogroup", "http.socket: /proc/nowhere/s: No such file or directory"),
        pytest.param(
            "s",
            "no-such-group",
            "http.socket_group: expected a group of this system, got 'no-such-group'",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a socket away"),
        ),
    ],
)
def test_a_place_where_it_cannot_listen_is_named(name: str, group: str, told: str) -> None:
    with tempfile.TemporaryDirectory(prefix="os-h-", dir="/tmp") as place:
        precious = Path(place, "file")
        precious.write_text("precious")
        with pytest.raises(ConfigError, match=re.escape(told.format(place=place))):
            server.run(Http(socket=Path(place, name), socket_group=group), [], lambda: None)
        assert precious.read_text() == "precious"


def test_over_a_unix_socket_the_proxy_is_of_this_host(database: Database) -> None:
    """What it says of its client is believed where 127.0.0.1 is trusted."""
    key = add_key(database)
    with on_socket(database) as (served, _):
        heard = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "192.0.2.9"}
        assert served.ask("POST", "/v1/send", MAIL, **heard)[0] == 202
        served.daemon.write(http={"trusted_proxies": "127.0.0.1"})
        served.daemon.reload()
        assert served.ask("POST", "/v1/send", MAIL, **heard)[0] == 202
        with database.connect() as connection:
            found = connection.execute(
                "SELECT client_address FROM opensend_milter.submissions ORDER BY received_at"
            ).fetchall()
        assert found == [("127.0.0.1",), ("192.0.2.9",)]


# ---------------------------------------------------------------------- TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "tls"
    folder.mkdir()
    make_certificate(folder, ["localhost"], now=datetime.now(UTC))
    return folder


@contextmanager
def encrypted(database: Database, folder: Path, share: int = 50, **more: str) -> Iterator[Front]:
    settings: dict[str, object] = {"tls": True, "client_share_percent": share}
    with front(database, http=settings, tls={"folder": str(folder), **more}) as plain:
        connect = plain.connect

        def secured() -> socket.socket:
            context = ssl.create_default_context(cafile=folder / "ca.pem")
            raw = connect()
            try:
                return context.wrap_socket(raw, server_hostname="localhost")
            except BaseException:
                raw.close()
                raise

        plain.connect = secured
        yield plain


def test_https_takes_messages_and_a_renewed_certificate_without_a_break(database: Database, certificates: Path) -> None:
    key = add_key(database)
    with encrypted(database, certificates) as served:
        assert served.send(key) == 202
        with database.connect() as connection:
            assert connection.execute("SELECT tls FROM opensend_milter.submissions").fetchone() == ("HTTPS",)
        with served.connect() as open_before:
            make_certificate(certificates, ["localhost"], now=datetime.now(UTC))
            with pytest.raises(ssl.SSLCertVerificationError):
                served.connect()
            told = served.daemon.reload()
            assert "the certificate is good until" in told
            assert "nothing has changed" in told
            assert served.ask("GET", "/healthz")[0] == 200
            open_before.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert open_before.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_https_shows_the_files_that_are_named_beside_an_acme_json(database: Database, certificates: Path) -> None:
    """It is Postfix that is given what acme.json holds; its file is not even for us to read."""
    with encrypted(database, certificates, acme_json=str(certificates / "acme.json")) as served:
        assert served.ask("GET", "/healthz")[0] == 200


def test_a_renewed_certificate_that_cannot_be_used_is_refused(database: Database, certificates: Path) -> None:
    with encrypted(database, certificates) as served:
        good = (certificates / "privkey.pem").read_bytes()
        for broken in (b"", b"nonsense", (certificates / "fullchain.pem").read_bytes()):
            (certificates / "privkey.pem").write_bytes(broken)
            assert "not reloaded, the old configuration stays: tls.folder" in served.daemon.reload()
            assert served.ask("GET", "/healthz")[0] == 200
        (certificates / "privkey.pem").write_bytes(good)
        assert "not reloaded" not in served.daemon.reload()


@pytest.mark.parametrize(("version", "is_spoken"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)])
def test_old_tls_is_not_spoken(tmp_path: Path, version: ssl.TLSVersion, is_spoken: bool) -> None:  # noqa: FBT001
    """Without the process: what its connections are made with."""
    pair = make_certificate(tmp_path, ["localhost"], now=datetime.now(UTC)).pair
    context = server.tls_context(pair.certificate, pair.key)
    assert (context.minimum_version <= version) == is_spoken


def test_a_certificate_that_does_not_load_is_an_error_at_the_start(tmp_path: Path, certificates: Path) -> None:
    (certificates / "fullchain.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "config.yaml").write_text(json.dumps({"http": {"tls": True}, "tls": {"folder": str(certificates)}}))
    assert begin("http", tmp_path, os.environ).wait(patience_s()) == 78
    assert f"tls.folder: {certificates}" in (tmp_path / "log").read_text()


def test_a_pair_that_does_not_fit_leaves_the_one_that_is_shown(tmp_path: Path, certificates: Path) -> None:
    context = server.tls_context(certificates / "fullchain.pem", certificates / "privkey.pem")
    other = make_certificate(tmp_path, ["localhost"], now=datetime.now(UTC)).pair
    for certificate, key in [(other.certificate, certificates / "privkey.pem"), (other.certificate, tmp_path / "no")]:
        with pytest.raises(ConfigError, match=r"http\.tls: cannot use"):
            server.show_certificate(context, certificate, key)
    context.load_cert_chain(certificates / "fullchain.pem", certificates / "privkey.pem")


def test_who_speaks_no_tls_hurts_nobody(database: Database, certificates: Path) -> None:
    with encrypted(database, certificates) as served:
        port = int(str(served.daemon.config["http"]["port"]))
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200), b"\0" * 5_000):
            with socket.create_connection(("127.0.0.1", port), timeout=patience_s()) as stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
        assert served.ask("GET", "/healthz")[0] == 200


# ---------------------------------------------------------------------- how much at once, and the end


def begun(served: Front, key: str, query: str = "") -> socket.socket:
    """Begin a request whose body comes later."""
    client = served.connect()
    client.sendall(REQUEST.format(query=query, key=key, length=len(MAIL)).encode() + MAIL[:10])
    return client


def test_over_the_limit_is_503_in_the_one_shape(database: Database) -> None:
    """A monitor is still answered, idle connections take no room, and what is in hand goes on."""
    key = add_key(database)
    with front(database, http={"client_share_percent": 100}) as served, ExitStack() as held:
        for _ in range(300):
            held.enter_context(served.connect())
        clients = [held.enter_context(begun(served, key)) for _ in range(MOST_REQUESTS)]
        await_true(lambda: served.ask("GET", "/v1/keys/self")[0] == 503, "there is no room", pause_s=0.02)
        status, answer, fields = served.ask("POST", "/v1/send", MAIL, Authorization=f"Bearer {key}")
        assert (status, answer["code"], answer["retryable"]) == (503, "unavailable", True)
        assert answer.keys() == {"status", "code", "message", "request_id", "retryable", "name", "statusCode"}
        assert fields["x-request-id"] == answer["request_id"]
        assert int(fields["retry-after"]) >= 1
        assert served.ask("GET", "/healthz")[0] == 200
        for client in clients:
            client.sendall(MAIL[10:])
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert served.send(key) == 202
        assert stored(database) == MOST_REQUESTS + 1


@pytest.mark.case(60)
def test_sigterm_answers_what_is_in_hand_and_lets_nothing_in(database: Database) -> None:
    """One waits for its outcome, another has not sent its body yet."""
    key = add_key(database)
    with front(database) as served, begun(served, key, "?wait=2") as waits, begun(served, key) as slow:
        waits.sendall(MAIL[10:])
        await_true(lambda: stored(database) == 1, "one is stored")
        served.daemon.process.send_signal(signal.SIGTERM)
        await_true(lambda: refuses(served), "nobody is let in")
        assert served.daemon.process.poll() is None
        slow.sendall(MAIL[10:])
        assert slow.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert waits.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert served.daemon.process.wait(patience_s()) == 0
        assert stored(database) == 2


def refuses(served: Front) -> bool:
    try:
        served.connect().close()
    except OSError:
        return True
    return False


@asynccontextmanager
async def in_this_process(routes: Sequence[BaseRoute] = ()) -> AsyncIterator[tuple[ServerState, tuple[str, int]]]:
    """Answer without a process; yield what is open, and where to connect."""
    app = server.application(routes)
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_keep_alive=1)
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    made = partial(connections.Connection, connections.Connections(), config, state, {})
    listening = await loop.create_server(made, "127.0.0.1", 0)
    async with asyncio.timeout(patience_s()):
        yield state, listening.sockets[0].getsockname()
        while state.connections:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nX: ", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"])
def test_who_never_says_a_whole_request_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """However steadily it drips in."""
    monkeypatch.setattr(connections, "BODY_S", 0.5)

    async def drip() -> None:
        async with in_this_process() as (_, place):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(said)
            with suppress(ConnectionError):  # it drips into one that is closed already
                while not reader.at_eof():
                    writer.write(b"x" if said else b"")
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1_000), 0.05)
            writer.close()

    asyncio.run(drip())


def test_who_does_not_read_the_answers_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """His connection, and all that it holds, would stay for ever."""
    monkeypatch.setattr(connections, "BODY_S", 0.1)
    large = Route("/", lambda _: PlainTextResponse(b"x" * 40_000_000))

    async def ask() -> None:
        async with in_this_process([large]) as (state, place):
            _, writer = await asyncio.open_connection(*place, limit=1)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while state.connections or not state.total_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(ask())


@pytest.mark.parametrize("chunks", [4_000, 5_000])
def test_a_body_does_not_come_in_crumbs(chunks: int) -> None:
    """Each would take as much work as one that is thousands of times as long."""

    async def read(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def ask() -> bytes:
        async with in_this_process([Route("/", read, methods=["POST"])]) as (_, place):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            writer.write(b"1\r\nx\r\n" * chunks + b"0\r\n\r\n")
            answer = b""
            with suppress(ConnectionError):  # what it did not read
                answer = await reader.read()
            writer.close()
            return answer

    answer = asyncio.run(ask())
    assert answer.endswith(b"4000") if chunks == 4_000 else not answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/a/", "//a", "/a//"])
def test_nobody_is_sent_to_the_host_that_a_request_names(path: str) -> None:
    async def ask() -> bytes:
        async with in_this_process([Route("/a", lambda _: PlainTextResponse(""), methods=["POST"])]) as (_, place):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(f"POST {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer

    answer = asyncio.run(ask())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"location:" not in answer.lower()


@pytest.mark.parametrize("length", [0, 5])
def test_a_body_of_two_lengths_ends_the_connection(length: int) -> None:
    """What a proxy took for the body's end would begin a request here, in somebody else's name."""

    async def read(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def ask() -> bytes:
        async with in_this_process([Route("/", read, methods=["POST"])]) as (_, place):
            reader, writer = await asyncio.open_connection(*place)
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(f"{head}0\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer

    answer = asyncio.run(ask())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_was_answered_and_goes_on_with_nonsense_is_no_fault_of_ours(database: Database) -> None:
    """It would be a traceback in the log, for anybody to write there."""
    with front(database) as running, running.connect() as client:
        client.sendall(b"POST /v1/send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.recv(4_096).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"nonsense\r\n")
        while client.recv(4_096):
            pass


def test_what_announces_too_much_is_told_so_before_it_is_sent(database: Database) -> None:
    """A client that asks first (Expect: 100-continue) sends nothing; one that does not still hears why."""
    with front(database) as running, running.connect() as client:
        client.sendall(
            f"POST /v1/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {add_key(database)}\r\n"
            "Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n".encode()
        )
        answer = b""
        while more := client.recv(65536):
            answer += more
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"payload_too_large"' in answer


def test_an_answer_is_not_held_back_for_an_acknowledgement(database: Database) -> None:
    """Head and body leave as two packets: without TCP_NODELAY each request on a kept connection takes 40 ms longer."""
    with front(database) as running, running.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        with theirs(running.daemon.process.pid, client) as end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@contextmanager
def theirs(pid: int, client: socket.socket) -> Iterator[socket.socket]:
    """Lend the server's own end of a connection."""
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not str(entry.readlink()).startswith("socket:"):
                continue
            descriptor = _libc.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
            with socket.socket(fileno=descriptor) as found:
                if found.family == socket.AF_INET and _peer(found) == client.getsockname():
                    yield found
                    return
    finally:
        os.close(process)
    raise AssertionError("the server has no such connection")


def _peer(found: socket.socket) -> object:
    try:
        return found.getpeername()
    except OSError:
        return None
