"""The HTTP process: serves what routes it is given, bounds what it reads, and has one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opensend_milter.config import Http
from opensend_milter.core.errors import ConfigError, OpensendError, PermanentError
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.submission import request_id
from opensend_milter.servers.metrics_page import CountedRequests

log = logging.getLogger(__name__)
MOST_BODY_BYTES = 1_048_576
BODY_S = 20.0
SLOWEST_BYTES_PER_S = 65_536
"""A request that is not whole after so long, and what its size takes at this rate, is given up."""
LARGE_BYTES, LARGE_AT_ONCE = 1_048_576, 4
"""Each of these is held as a whole while it becomes a message."""
DRAIN_S = 20
_MOST_REQUESTS = 200
"""At once; more are told 503."""
_IDLE_S = 15
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


def run(
    settings: Http,
    routes: Sequence[BaseRoute],
    ready: Callable[[], None],
    *,
    max_body_bytes: int = MOST_BODY_BYTES,
) -> None:
    """Serve until SIGTERM or SIGINT; return when what is in hand is answered, or `DRAIN_S` is over."""
    with _listening(settings) as listener:
        server = _Server(
            uvicorn.Config(
                application(routes, max_body_bytes=max_body_bytes),
                access_log=False,
                log_config=None,
                server_header=False,
                # It would believe X-Forwarded-For of whoever is on this host.
                proxy_headers=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_MOST_REQUESTS,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=DRAIN_S,
            ),
            ready,
        )
        with _stopping(server):
            server.run(sockets=[listener])


def application(routes: Sequence[BaseRoute], *, max_body_bytes: int = MOST_BODY_BYTES) -> Starlette:
    """Make the application: an error of ours is 503, so that whoever asked comes again."""
    return Starlette(
        routes=list(routes),
        middleware=[Middleware(CountedRequests), Middleware(_Bounded, max_body_bytes=max_body_bytes)],
        exception_handlers={HTTPException: _as_raised, OpensendError: _of_ours, Exception: _unexpected},
    )


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


async def _unexpected(request: Request, _: Exception) -> Response:
    return error(request, _NOT_NOW)


class _Bounded:
    """Gives each request an id; reads no more than it may, not for ever, and few large ones at once."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

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

        reader = _Reader(receive, self._max_body_bytes, self._large)
        try:
            await self._app(scope, reader.receive, named)
        finally:
            reader.release()


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
                raise HTTPException(413, f"more than {self._max_body_bytes} octets", {"Connection": "close"})
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


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


@contextmanager
def _listening(settings: Http) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"http.port: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error
    with listener:
        log.info("listening on %s port %d", settings.host, listener.getsockname()[1])
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
