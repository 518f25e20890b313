"""The HTTP process: serves what routes it is given, bounds what it reads, and has one shape for every error."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from opensend_milter.config import Console, Http
from opensend_milter.core.errors import ConfigError, OpensendError, PermanentError
from opensend_milter.core.policy import is_within
from opensend_milter.servers.activation import passed_or
from opensend_milter.servers.metrics_page import CountedRequests
from opensend_milter.servers.unix_socket import BACKLOG, group_of, listening_on
from opensend_milter.servers.web.caller import client_address
from opensend_milter.servers.web.connections import IDLE_S, UNIX_PEERS, Connection, Connections, Door
from opensend_milter.servers.web.refusals import error
from opensend_milter.servers.web.room import Room
from opensend_milter.servers.web.visits import MOST_KEYLESS_BYTES, Visits

log = logging.getLogger(__name__)
Refusing = Callable[[Request, HTTPException], Response]
"""How an error is answered."""
DRAIN_S = 35
"""Above the longest time that a request may ask to wait."""
_TLS_BUFFER_OCTETS = 65_536
"""Of each connection, from before its handshake; asyncio would take four times as much."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is answered; another one may take its place while the server runs."""

    routes: Sequence[BaseRoute]
    max_body_bytes: int = MOST_KEYLESS_BYTES
    proxies: tuple[str, ...] = ()
    """Networks whose word is believed, in `client_header`, on whose request it is."""
    client_header: str = "x-forwarded-for"
    refuse: Refusing = error


def run(
    settings: Http | Console,
    routes: Sequence[BaseRoute],
    ready: Callable[[], None],
    *,
    max_body_bytes: int = MOST_KEYLESS_BYTES,
    tls: ssl.SSLContext | None = None,
    reload: Callable[[], Site | None] | None = None,
    refuse: Refusing = error,
) -> None:
    """Serve until SIGTERM or SIGINT; return when what is in hand is answered, or `DRAIN_S` is over.

    On SIGHUP `reload` says what is answered from then on, None: the same as before. It may change `tls` in place.
    """
    site = Site(
        routes=routes,
        max_body_bytes=max_body_bytes,
        proxies=believed(settings),
        client_header=settings.client_header,
        refuse=refuse,
    )
    SSLProtocol.max_size = _TLS_BUFFER_OCTETS
    with _listening(settings) as listener:
        front = _Front(site, settings.client_share_percent)
        connections = Connections(settings.client_share_percent, front.is_proxy)
        server = _Server(
            uvicorn.Config(
                front,
                # A factory is all that it takes.
                http=partial(Connection, connections),  # type: ignore[arg-type]
                # Another one would accept past the door.
                loop="asyncio",
                # Given as it is: another certificate can be loaded into it while it is in use.
                ssl_context_factory=(lambda *_: tls) if tls else None,
                access_log=False,
                log_config=None,
                server_header=False,
                # It would believe X-Forwarded-For of whoever is on this host.
                proxy_headers=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=DRAIN_S,
            ),
            ready,
            (lambda: front.show(reload())) if reload else None,
        )
        with _stopping(server):
            server.run(sockets=[Door(listener, connections)])


def believed(settings: Http | Console) -> tuple[str, ...]:
    """Return the networks whose word on who asks is believed; at the console's socket everybody is a proxy."""
    own = UNIX_PEERS if isinstance(settings, Console) and settings.socket else ()
    return (*settings.trusted_proxies.split(), *own)


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
    routes: Sequence[BaseRoute],
    *,
    max_body_bytes: int = MOST_KEYLESS_BYTES,
    room: Room | None = None,
    proxies: Sequence[str] = (),
    client_header: str = "x-forwarded-for",
    refuse: Refusing = error,
) -> Starlette:
    """Make the application: an error of ours is 503, so that whoever asked comes again."""
    visits = Middleware(
        Visits,
        room=room or Room(max_body_bytes),
        max_body_bytes=max_body_bytes,
        client_of=lambda request: client_address(request, proxies, client_header),
        refuse=refuse,
    )
    made = Starlette(
        routes=list(routes),
        middleware=[Middleware(CountedRequests), visits],
        exception_handlers=_handlers(refuse),
    )
    # It would send a client, its key and its message to whatever host the request names.
    made.router.redirect_slashes = False
    return made


class _Front:
    """Answers as the site says that is shown when a request begins."""

    def __init__(self, site: Site, share_percent: int) -> None:
        self._room = Room(site.max_body_bytes, share_percent)
        self.show(site)

    def show(self, site: Site | None) -> None:
        """Answer so from the next request on."""
        if site:
            self._site = site
            self._room.fit(site.max_body_bytes)
            self._app = application(
                site.routes,
                max_body_bytes=site.max_body_bytes,
                room=self._room,
                proxies=site.proxies,
                client_header=site.client_header,
                refuse=site.refuse,
            )

    def is_proxy(self, address: str) -> bool:
        """Tell whether many clients come from there."""
        return is_within(address, self._site.proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _handlers(refuse: Refusing) -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    async def as_raised(request: Request, exception: Exception) -> Response:
        assert isinstance(exception, HTTPException)  # noqa: S101  # Starlette says it less exactly
        return refuse(request, exception)

    async def of_ours(request: Request, exception: Exception) -> Response:
        if isinstance(exception, PermanentError):
            return refuse(request, HTTPException(422, str(exception)))
        log.warning("%s: %s: %s", request.state.request_id, request.url.path, exception)
        return refuse(request, _not_now())

    async def gone(request: Request, _: Exception) -> Response:
        """Answer nobody; and nobody is told of a fault of ours."""
        return refuse(request, HTTPException(400, "the request did not come to its end"))

    async def unexpected(request: Request, _: Exception) -> Response:
        return refuse(request, _not_now())

    return {HTTPException: as_raised, OpensendError: of_ours, ClientDisconnect: gone, Exception: unexpected}


def _not_now() -> HTTPException:
    return HTTPException(503, "not now, try again later", {"Retry-After": "5"})


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
def _listening(settings: Http | Console) -> Iterator[socket.socket]:
    with passed_or(_name_of(settings), lambda: _opened(settings)) as listener:
        yield listener


@contextmanager
def _opened(settings: Http | Console) -> Iterator[socket.socket]:
    name = _name_of(settings)
    if settings.socket:
        group = group_of(settings.socket_group, key=f"{name}.socket_group")
        with listening_on(settings.socket, group, key=f"{name}.socket") as listener:
            log.info("listening on %s", settings.socket)
            yield listener
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{name}.port: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error
    with listener:
        log.info("listening on %s port %d%s", settings.host, listener.getsockname()[1], ", TLS" if settings.tls else "")
        yield listener


def _name_of(settings: Http | Console) -> str:
    return "http" if isinstance(settings, Http) else "console"


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
