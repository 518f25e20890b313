"""The HTTP process: serves what routes it is given, bounds what it reads, and has one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from opensend_milter.config import Http
from opensend_milter.core.errors import ConfigError, OpensendError, PermanentError
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.submission import request_id
from opensend_milter.servers.activation import passed_or
from opensend_milter.servers.metrics_page import CountedRequests
from opensend_milter.servers.unix_socket import BACKLOG, group_of, listening_on
from opensend_milter.servers.web.health import HEALTH_PATH

log = logging.getLogger(__name__)
MOST_BODY_BYTES = 1_048_576
BODY_S = 20.0
SLOWEST_BYTES_PER_S = 65_536
"""A request that is not whole after so long, and what its size takes at this rate, is given up."""
LARGE_BYTES, LARGE_AT_ONCE = 1_048_576, 4
"""Each of these is held as a whole while it becomes a message."""
DRAIN_S = 35
"""Above the longest time that a request may ask to wait."""
MOST_REQUESTS = 200
"""At once; more are told 503."""
_MOST_CONNECTIONS = 2_000
_IDLE_S = 15
"""A connection that says nothing for so long is closed, also before its first request."""
_UNIX_PEER = ("127.0.0.1", 0)
"""Whoever may connect to a unix socket is of this host."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    503: "unavailable",
}
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_NOW = HTTPException(503, "not now, try again later", {"Retry-After": "5"})
_CROWDED = HTTPException(503, "too many requests at once, try again later", {"Retry-After": "1", "Connection": "close"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is answered; another one may take its place while the server runs."""

    routes: Sequence[BaseRoute]
    max_body_bytes: int = MOST_BODY_BYTES


class Room:
    """How much a process has in hand, whichever site it is for."""

    def __init__(self) -> None:
        self.requests = 0
        self.large = asyncio.Semaphore(LARGE_AT_ONCE)


def run(
    settings: Http,
    routes: Sequence[BaseRoute],
    ready: Callable[[], None],
    *,
    max_body_bytes: int = MOST_BODY_BYTES,
    tls: ssl.SSLContext | None = None,
    reload: Callable[[], Site | None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; return when what is in hand is answered, or `DRAIN_S` is over.

    On SIGHUP `reload` says what is answered from then on, None: the same as before. It may change `tls` in place.
    """
    with _listening(settings) as listener:
        front = _Front(Site(routes=routes, max_body_bytes=max_body_bytes))
        server = _Server(
            uvicorn.Config(
                front,
                http=_Connection,
                # Given as it is: another certificate can be loaded into it while it is in use.
                ssl_context_factory=(lambda *_: tls) if tls else None,
                access_log=False,
                log_config=None,
                server_header=False,
                # It would believe X-Forwarded-For of whoever is on this host.
                proxy_headers=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=DRAIN_S,
            ),
            ready,
            (lambda: front.show(reload())) if reload else None,
        )
        with _stopping(server):
            server.run(sockets=[listener])


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what connections are made with: TLS 1.2 at least."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    show_certificate(context, certificate, key)
    return context


def show_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show this one from the next connection on; one that does not load changes nothing."""
    try:
        # The trial is apart: a context whose key does not fit its certificate could not go on.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(f"http.tls: cannot use {certificate} with {key}: {error.strerror or error}") from error


def application(
    routes: Sequence[BaseRoute], *, max_body_bytes: int = MOST_BODY_BYTES, room: Room | None = None
) -> Starlette:
    """Make the application: an error of ours is 503, so that whoever asked comes again."""
    room = room or Room()
    return Starlette(
        routes=list(routes),
        middleware=[
            Middleware(CountedRequests),
            Middleware(_Bounded, max_body_bytes=max_body_bytes, room=room),
            Middleware(_Crowded, room=room),
        ],
        exception_handlers={
            HTTPException: _as_raised,
            OpensendError: _of_ours,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )


class _Front:
    """Answers as the site says that is shown when a request begins."""

    def __init__(self, site: Site) -> None:
        self._room = Room()
        self.show(site)

    def show(self, site: Site | None) -> None:
        """Answer so from the next request on."""
        if site:
            self._app = application(site.routes, max_body_bytes=site.max_body_bytes, room=self._room)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Refused(HTTPException):
    """An answer that says no: with a code of its own, and every field that is wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.errors = errors


def error(request: Request, refused: HTTPException) -> Response:
    """Answer with an error, in the one shape that all have: in http-smtp-rele's words and in Resend's."""
    status = refused.status_code
    code = refused.code if isinstance(refused, Refused) else _CODES.get(status, "error")
    content: dict[str, object] = {
        "status": "error",
        "code": code,
        "message": refused.detail,
        "request_id": request.state.request_id,
        "retryable": status in RETRYABLE,
        "name": code,
        "statusCode": status,
    }
    if isinstance(refused, Refused) and refused.errors:
        content["errors"] = list(refused.errors)
    headers = {**(refused.headers or {}), "X-Request-Id": request.state.request_id}
    return JSONResponse(content, status_code=status, headers=headers)


async def _as_raised(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)  # noqa: S101  # Starlette says it less exactly
    return error(request, exception)


async def _of_ours(request: Request, exception: Exception) -> Response:
    if isinstance(exception, PermanentError):
        return error(request, HTTPException(422, str(exception)))
    log.warning("%s: %s: %s", request.state.request_id, request.url.path, exception)
    return error(request, _NOT_NOW)


async def _gone(request: Request, _: Exception) -> Response:
    """Answer nobody; and nobody is told of a fault of ours."""
    return error(request, HTTPException(400, "the request did not come to its end"))


async def _unexpected(request: Request, _: Exception) -> Response:
    return error(request, _NOT_NOW)


class _Bounded:
    """Gives each request an id; reads no more than it may, not for ever, and few large ones at once."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, room: Room) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._large = room.large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        email_id = new_email_id()
        state = scope.setdefault("state", {})
        state["email_id"], state["request_id"] = email_id, request_id(email_id)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = state["request_id"]
            await send(message)

        announced = Headers(scope=scope).get("content-length", "")
        # Before the client is told to go on (RFC 9110, 10.1.1): one that is cut off in its body may not see the answer.
        if announced.isascii() and announced.isdecimal() and int(announced) > self._max_body_bytes:
            receive = _too_large(self._max_body_bytes)
        reader = _Reader(receive, self._max_body_bytes, self._large)
        try:
            await self._app(scope, reader.receive, named)
        finally:
            reader.release()


class _Crowded:
    """Turns away what comes when there is no more room; a monitor is still told that we live."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._room.requests >= MOST_REQUESTS and scope["path"] != HEALTH_PATH:
            await error(Request(scope), _CROWDED)(scope, receive, send)
            return
        self._room.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._room.requests -= 1


class _Reader:
    """Reads one request's body within bounds."""

    def __init__(self, receive: Receive, max_body_bytes: int, large: asyncio.Semaphore) -> None:
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._large = large
        self._is_large = False
        self._is_whole = False
        self._read_bytes = 0
        self._begun_at = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """Receive the next piece, or what comes after the body."""
        # Who sends steadily may take his time; who lets a byte drip now and then may not.
        deadline = self._begun_at + BODY_S + self._read_bytes / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(None if self._is_whole else deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the request did not come to its end", {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._read_bytes += len(message.get("body", b""))
            if self._read_bytes > self._max_body_bytes:
                raise _over(self._max_body_bytes)
            if self._read_bytes > LARGE_BYTES and not self._is_large:
                await self._wait_for_room()
        return message

    async def _wait_for_room(self) -> None:
        waited_since = asyncio.get_running_loop().time()
        await self._large.acquire()
        self._is_large = True
        self._begun_at += asyncio.get_running_loop().time() - waited_since

    def release(self) -> None:
        """Make room for the next large one."""
        if self._is_large:
            self._large.release()


def _over(max_body_bytes: int) -> HTTPException:
    return HTTPException(413, f"more than {max_body_bytes} octets", {"Connection": "close"})


def _too_large(max_body_bytes: int) -> Receive:
    async def receive() -> Message:
        raise _over(max_body_bytes)

    return receive


class _Connection(H11Protocol):
    """Waits for the first request no longer than for the next one, and for no head that drips in."""

    _head_by = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            self.client = _UNIX_PEER
        else:
            # asyncio does so only for sockets that were made with IPPROTO_TCP; head and body are two writes, and with
            # Nagle's algorithm the second one waits 40 ms for the client's delayed ACK.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:
            self._head_by = 0.0
        else:
            self._head_by = self._head_by or self.loop.time() + BODY_S
            self.timeout_keep_alive_task = self.loop.call_at(self._head_by, self.timeout_keep_alive_handler)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], reload: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._reload:
            # In this thread, so that no connection is made while its certificate is being replaced.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        self._ready()


@contextmanager
def _listening(settings: Http) -> Iterator[socket.socket]:
    with passed_or("http", lambda: _opened(settings)) as listener:
        yield listener


@contextmanager
def _opened(settings: Http) -> Iterator[socket.socket]:
    if settings.socket:
        group = group_of(settings.socket_group, key="http.socket_group")
        with listening_on(settings.socket, group, key="http.socket") as listener:
            log.info("listening on %s", settings.socket)
            yield listener
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"http.port: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error
    with listener:
        log.info("listening on %s port %d%s", settings.host, listener.getsockname()[1], ", TLS" if settings.tls else "")
        yield listener


@contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """End in peace: uvicorn raises the signal that ended it once more, for whoever had asked for it before."""

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    before = {one: signal.signal(one, stop) for one in _STOP_SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
