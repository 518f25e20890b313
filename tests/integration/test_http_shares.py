"""One client that holds all it may of the HTTP door, and another that is served beside it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup.messages import PostgresMessages
from opensend_milter.core import counting
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import EmailId, KeyId, Message
from opensend_milter.core.rates import RateLimits
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.submission import Caller
from opensend_milter.host.rendering.certificates import make_certificate
from opensend_milter.servers.throttle import Throttle
from opensend_milter.servers.web import connections, room
from opensend_milter.servers.web.api import Api
from opensend_milter.servers.web.bodies import Asked, Bodies
from opensend_milter.servers.web.connections import MOST_CONNECTIONS, Connections, Door
from opensend_milter.servers.web.letters import Letters
from opensend_milter.servers.web.messages import Messages
from opensend_milter.servers.web.records import Records
from opensend_milter.servers.web.refusals import Refused
from opensend_milter.servers.web.room import LARGEST_AT_ONCE, MOST_MESSAGES, MOST_REQUESTS, Room, Stock
from opensend_milter.servers.web.server import application
from opensend_milter.servers.web.visits import MOST_KEYLESS_BYTES
from tests.integration.private_postgres import Database
from tests.integration.test_http_outcomes import FaultyDesk, NoLetters, NoLimit, mail
from tests.integration.test_http_server import (
    MAIL,
    REQUEST,
    Front,
    add_key,
    begun,
    encrypted,
    front,
)
from tests.waiting import await_true, patience_s

FLOOD, INNOCENT = "127.0.0.2", "127.0.0.3"
HALF_OPEN = 2_050
LARGEST = 52_428_800
SLOW = (
    "POST /v1/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    "Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
)
NO_LIMITS = RateLimits(total_per_minute=0, client_per_minute=0, key_per_minute=0, failed_per_minute=0)
GO_ON = b"HTTP/1.1 100 "
MOST_MORE_MB = 400
"""With so many TLS connections that were begun."""


@pytest.fixture
def share() -> int:
    return 50


@pytest.fixture(params=["plain", "TLS"])
def served(request: pytest.FixtureRequest, database: Database, tmp_path: Path, share: int) -> Iterator[Front]:
    if request.param == "plain":
        running = front(database, http={"client_share_percent": share})
    else:
        make_certificate(tmp_path, ["localhost"], now=datetime.now(UTC))
        running = encrypted(database, tmp_path, share)
    with running as found:
        yield found


def port_of(served: Front) -> int:
    return int(str(served.daemon.config["http"]["port"]))


@contextmanager
def raw(served: Front, source: str) -> Iterator[socket.socket]:
    """Connect from an address of this host, and begin no TLS."""
    place = ("127.0.0.1", port_of(served))
    with socket.create_connection(place, patience_s(), source_address=(source, 0)) as client:
        yield client


@contextmanager
def in_hand(served: Front, key: str) -> Iterator[socket.socket]:
    """Begin a request from where the flood comes, whose body comes later."""
    with ExitStack() as held:
        client = held.enter_context(raw(served, FLOOD))
        if served.daemon.config["http"].get("tls"):
            context = ssl.create_default_context(cafile=f"{served.daemon.config['tls']['folder']}/ca.pem")
            client = held.enter_context(context.wrap_socket(client, server_hostname="localhost"))
        client.sendall(REQUEST.format(query="", key=key, length=len(MAIL)).encode() + MAIL[:10])
        yield client


def hung_up(client: socket.socket) -> bool:
    """Tell whether the server has closed it."""
    client.setblocking(False)  # noqa: FBT003
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def resident_mb(served: Front) -> int:
    lines = Path(f"/proc/{served.daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", lines)[0]) // 1_024


# ---------------------------------------------------------------------- large bodies


def told_to_go_on(client: socket.socket) -> bool:
    """Tell whether the server has asked for the body."""
    client.setblocking(False)  # noqa: FBT003
    try:
        return client.recv(1_000).startswith(GO_ON)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False


@pytest.mark.case(79)
def test_slow_large_messages_of_one_key_leave_room_for_another(served: Front, database: Database) -> None:
    """Those that have room get on as slowly as they like; nobody reads what there is no room for."""
    key, other = add_key(database), add_key(database, "example.com")
    large = json.dumps(mail(body="x" * 2_000_000)).encode()
    with ExitStack() as held:
        clients = [held.enter_context(served.connect()) for _ in range(2 * LARGEST_AT_ONCE)]
        for client in clients:
            client.sendall(SLOW.format(key=key, length=LARGEST).encode())
        waiting, slow = [*clients], list[socket.socket]()

        def send_some() -> int:
            for client in [*filter(told_to_go_on, waiting)]:
                waiting.remove(client)
                slow.append(client)
                client.settimeout(patience_s())
                client.sendall(b'{"body":"' + b"x" * 1_500_000)
            return len(slow)

        await_true(lambda: send_some() >= LARGEST_AT_ONCE // 2, "some are told to go on")
        assert served.send(other, large) == 202
        assert served.send(other) == served.send(key) == 202
        assert served.ask("GET", "/healthz")[0] == 200
        assert send_some() == LARGEST_AT_ONCE // 2


async def call(
    app: ASGIApp, *pieces: bytes, peer: str = "192.0.2.7", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Ask as uvicorn does; return status, what was answered, and the fields. The body goes on after its pieces."""
    sent: list[MutableMapping[str, Any]] = []
    left = [*pieces]

    async def receive() -> MutableMapping[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": named, "client": (peer, 1)}
    await app(scope, receive, send)
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(sent[1]["body"]), fields


async def with_key(request: Request) -> Response:
    """Read the body of whoever says whose he is."""
    if key := request.headers.get("key"):
        request.state.visit.belongs_to(KeyId(key))
    return PlainTextResponse(await request.body())


APP = [Route("/", with_key, methods=["POST"])]


@asynccontextmanager
async def under_way(*requests: Any) -> AsyncIterator[None]:
    """Let requests begin, and never come to their end."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not [task.result() for task in tasks if task.done()]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.case(79)
@pytest.mark.parametrize("announced", [True, False])
def test_who_waits_for_room_is_told_so(monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:  # noqa: FBT001
    """429 where his own large bodies take it, 503 where those of others do; how long one is may be unknown."""
    monkeypatch.setattr(room, "LONGEST_WAIT_S", 0.1)
    size = {"content-length": str(LARGEST)} if announced else {}
    piece = b"x" * (room.LARGE_BYTES + 1)

    async def main() -> None:
        app = application(APP, max_body_bytes=LARGEST, room=Room(LARGEST, 50))
        half = LARGEST_AT_ONCE // 2
        async with under_way(*(call(app, piece, key="a", **size) for _ in range(half))):
            status, body, fields = await call(app, piece, key="a", **size)
            assert (status, body["code"], body["retryable"], fields["retry-after"]) == (429, "rate_limited", True, "1")
            async with under_way(*(call(app, piece, key="b", **size) for _ in range(half))):
                status, body, fields = await call(app, piece, key="c", **size)
                assert (status, body["code"], body["retryable"]) == (503, "unavailable", True)
                assert fields["retry-after"] == "1"
            async with under_way(call(app, piece, key="c", **size)):
                pass

    asyncio.run(main())


def test_a_body_without_a_key_is_small() -> None:
    """Whoever may send large ones is known by then."""

    async def main() -> None:
        app = application(APP, max_body_bytes=LARGEST)
        for size in ({"content-length": str(MOST_KEYLESS_BYTES + 1)}, {}):
            status, body, _ = await call(app, b"x" * (MOST_KEYLESS_BYTES + 1), **size)
            assert (status, body["message"]) == (413, f"more than {MOST_KEYLESS_BYTES} octets")
            async with under_way(call(app, b"x" * (MOST_KEYLESS_BYTES + 1), key="a", **size)):
                pass

    asyncio.run(main())


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize("share", [5])
def test_many_requests_of_one_key_leave_room_for_another(served: Front, database: Database, share: int) -> None:
    """It is its address that has its part until we know whose they are."""
    key, other = add_key(database), add_key(database, "example.com")
    with ExitStack() as held:
        clients = [held.enter_context(begun(served, key)) for _ in range(MOST_REQUESTS * share // 100)]
        await_true(lambda: served.send(other) == 202 and served.send(key) == 429, "the key has its part")
        status, answer, fields = served.ask("POST", "/v1/send", MAIL, Authorization=f"Bearer {key}")
        assert (status, answer["code"], answer["retryable"]) == (429, "rate_limited", True)
        assert int(fields["retry-after"]) >= 1
        for client in clients:
            client.sendall(MAIL[10:])
        for client in clients:
            assert client.recv(1_000).startswith(b"HTTP/1.1 202 ")
        assert served.send(key) == 202


def test_behind_a_proxy_each_client_has_its_part() -> None:
    """Whom the proxy names; where it is not trusted it is the client itself."""

    async def main() -> None:
        for proxies, status in (((), 429), (("192.0.2.7",), 413)):
            app = application(APP, max_body_bytes=1_000, room=Room(1_000, 50), proxies=proxies)
            async with under_way(*(call(app, x_forwarded_for="203.0.113.1") for _ in range(MOST_REQUESTS // 2))):
                assert (await call(app, b"x" * 1_001, x_forwarded_for="203.0.113.1"))[0] == 429
                assert (await call(app, b"x" * 1_001, x_forwarded_for="203.0.113.2"))[0] == status

    asyncio.run(main())


class TwoKeys(FaultyDesk):
    """Knows every key, each as another."""

    def caller(self, secret: str) -> Caller:
        return Caller(key_id=KeyId(secret), networks=None, may_bulk=True, has_full_access=True, token_hash=secret)


def nothing_to_lend() -> AbstractContextManager[Connection]:
    raise StoreUnavailable


@contextmanager
def taking(
    accept: Callable[[Message], EmailId], bodies: type[Bodies] = Bodies, watched: Room | None = None
) -> Iterator[ASGIApp]:
    """Make an application that takes messages of any key."""
    throttle, desk, threads = Throttle(NoLimit(), NO_LIMITS, timeout_s=patience_s()), TwoKeys(), CapacityLimiter(8)
    api = Api(
        accept=lambda messages: [accept(one) for one in messages],
        desk=desk,
        records=Records(store=desk, threads=threads),
        letters=Letters(store=NoLetters(), threads=threads),
        messages=Messages(store=PostgresMessages(nothing_to_lend, beside=False), turns=threads),
        throttle=throttle,
        bodies=bodies(limits=RequestLimits(), default_from="", max_bulk_messages=500),
        threads=threads,
    )
    throttle.start()
    try:
        yield application(api.routes(), max_body_bytes=LARGEST, room=watched or Room(LARGEST, 50))
    finally:
        throttle.stop()


def bulk(count: int) -> bytes:
    return json.dumps({"messages": [mail()] * count}).encode()


def test_bulks_of_one_key_leave_room_for_another() -> None:
    """However many messages of theirs wait to be decided."""
    stuck, let_go = threading.Semaphore(0), threading.Event()

    def accept(message: Message) -> EmailId:
        if message.session.key_id == "a":
            stuck.release()
            let_go.wait(patience_s())
        return message.id

    async def main(app: ASGIApp) -> None:
        bulks = [asyncio.ensure_future(post(app, "/v1/send-bulk", "a", bulk(MOST_MESSAGES))) for _ in range(3)]
        async with asyncio.timeout(patience_s()):
            for _ in range(MOST_MESSAGES // 2):
                await asyncio.to_thread(stuck.acquire)
            assert await post(app, "/v1/send", "b", MAIL) == 202
            assert await post(app, "/v1/send-bulk", "b", bulk(5)) == 202
            assert not stuck.acquire(blocking=False)
            let_go.set()
            assert await asyncio.gather(*bulks) == [202, 202, 202]

    with taking(accept) as app:
        try:
            asyncio.run(main(app))
        finally:
            let_go.set()


def test_one_body_is_read_at_a_time_and_each_key_has_its_turn() -> None:
    """What JSON becomes is many times its size, and nobody else runs while it is made."""
    begun, let_go = threading.Semaphore(0), threading.Semaphore(0)
    asked, read = asyncio.Semaphore(0), list[str]()

    class Noted(Bodies):
        def several(self, body: bytearray, asked: Asked) -> list[tuple[EmailId, Message | Refused]]:
            read.append(asked.key_id)
            begun.release()
            let_go.acquire(timeout=patience_s())
            return super().several(body, asked)

    class Watched(Stock):
        async def wait_for(self, who: str, amount: int = 1) -> None:
            asked.release()
            await super().wait_for(who, amount)

    async def main(app: ASGIApp) -> None:
        of_one = [asyncio.ensure_future(post(app, "/v1/send-bulk", "a", bulk(1))) for _ in range(5)]
        await asyncio.to_thread(begun.acquire)
        for _ in of_one:
            await asked.acquire()
        of_another = asyncio.ensure_future(post(app, "/v1/send-bulk", "b", bulk(1)))
        await asked.acquire()
        assert await post(app, "/v1/send", "b", MAIL) == 202
        for _ in range(5):
            assert not begun.acquire(blocking=False)
            let_go.release()
            await asyncio.to_thread(begun.acquire)
        let_go.release()
        assert await asyncio.gather(*of_one, of_another) == [202] * 6
        assert read.index("b") < 3

    watched = Room(LARGEST, 50)
    watched.reading = Watched(1, 1)
    with taking(lambda message: message.id, Noted, watched) as app:
        asyncio.run(main(app))


async def post(app: ASGIApp, path: str, key: str, body: bytes) -> int:
    sent: list[int] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status", 0))

    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "client": ("::1", 1),
    }
    await app(scope, receive, send)
    return sent[0]


# ---------------------------------------------------------------------- connections


@pytest.mark.timeout(300)
def test_half_open_connections_of_one_client_leave_room_for_others(served: Front, database: Database) -> None:
    """And for itself: those that were silent longest go, none whose request is in hand, and TLS takes little memory."""
    key = add_key(database)
    before = resident_mb(served)
    with ExitStack() as held, in_hand(served, key) as begun_before:
        silent = [held.enter_context(raw(served, FLOOD)) for _ in range(HALF_OPEN)]
        assert served.ask("GET", "/healthz")[0] == 200
        assert served.send(key) == 202
        with raw(served, INNOCENT) as other:
            assert not hung_up(other)
        part = MOST_CONNECTIONS // 2 - 1
        await_true(lambda: sum(map(hung_up, silent)) == HALF_OPEN - part, "the client has its part")
        assert not any(map(hung_up, silent[-part:]))
        begun_before.sendall(MAIL[10:])
        assert begun_before.recv(1_000).startswith(b"HTTP/1.1 202 ")
        assert resident_mb(served) - before < MOST_MORE_MB


@contextmanager
def door(family: socket.AddressFamily, place: Any, open_: Connections) -> Iterator[Door]:
    """Listen, and let nobody in by itself."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(place)
        listener.listen()
        with Door(listener, open_) as found:
            yield found


@pytest.mark.parametrize(("kind", "let_in"), [("client", 5), ("proxy", 10), ("unix", 10)])
def test_an_address_that_stands_for_many_may_have_all_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, let_in: int
) -> None:
    """A proxy, and a unix socket: of theirs, too, who was silent longest makes room in the end."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 10)
    cut: list[bool] = []
    monkeypatch.setattr(counting, "http_connection_cut", lambda: cut.append(True))
    open_ = Connections(50, lambda address: kind == "proxy" and address == "127.0.0.1")
    unix = kind == "unix"
    family, place = (socket.AF_UNIX, str(tmp_path / "s")) if unix else (socket.AF_INET, ("127.0.0.1", 0))
    with door(family, place, open_) as listening, ExitStack() as held:
        clients, accepted = [], []
        for number in range(13):
            client = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            client.connect(listening.getsockname())
            clients.append(client)
            accepted.append(held.enter_context(listening.accept()[0]))
            if number == 0:
                open_.note(accepted[0].fileno(), is_busy=True)
        assert [hung_up(client) for client in clients] == [False, *[True] * (13 - let_in), *[False] * (let_in - 1)]
        assert len(cut) == 13 - let_in
        for one in accepted:
            one.close()
        assert not open_._open
        assert not open_._of


def test_where_all_have_a_request_in_hand_the_next_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    open_ = Connections()
    with door(socket.AF_INET, ("127.0.0.1", 0), open_) as listening, ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(listening.getsockname()))
            open_.note(held.enter_context(listening.accept()[0]).fileno(), is_busy=True)
        late = held.enter_context(socket.create_connection(listening.getsockname()))
        listening.setblocking(False)  # noqa: FBT003
        with suppress(BlockingIOError):
            listening.accept()
        await_true(lambda: hung_up(late), "it is closed")
