"""The HTTP process: serves what routes it is given, bounds what it reads, and has one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opensend_milter.config import Http
from opensend_milter.core.errors import ConfigError, OpensendError, PermanentError

log = logging.getLogger(__name__)
MOST_BODY_BYTES = 1_048_576
BODY_S = 20.0
"""A request that is not whole by then is given up."""
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
    408: "timeout",
    413: "too_large",
    422: "unprocessable",
    503: "unavailable",
}


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
        middleware=[Middleware(_Bounded, max_body_bytes=max_body_bytes)],
        exception_handlers={HTTPException: _as_raised, OpensendError: _of_ours, Exception: _unexpected},
    )


def error(status: int, message: str) -> Response:
    """Answer with an error, as every route does."""
    code = _CODES.get(status, "error")
    return JSONResponse({"status": "error", "code": code, "message": message}, status_code=status)


async def _as_raised(_: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)  # noqa: S101  # Starlette says it less exactly
    answer = error(exception.status_code, exception.detail)
    answer.headers.update(exception.headers or {})
    return answer


async def _of_ours(request: Request, exception: Exception) -> Response:
    if isinstance(exception, PermanentError):
        return error(422, str(exception))
    log.warning("%s %s: %s", request.method, request.url.path, exception)
    return error(503, "not now, try again later")


async def _unexpected(_: Request, __: Exception) -> Response:
    return error(503, "not now, try again later")


class _Bounded:
    """Reads no more than it may, and not for ever."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read_bytes = 0
        is_whole = False

        async def bounded() -> Message:
            nonlocal read_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request did not come to its end", {"Connection": "close"}) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                read_bytes += len(message.get("body", b""))
                if read_bytes > self._max_body_bytes:
                    raise HTTPException(413, f"more than {self._max_body_bytes} octets", {"Connection": "close"})
            return message

        deadline = asyncio.get_running_loop().time() + BODY_S
        await self._app(scope, bounded, send)


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
