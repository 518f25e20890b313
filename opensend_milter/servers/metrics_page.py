"""Shows what is counted: on a port of 127.0.0.1 for processes that serve no HTTP, as a route for the one that does."""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING

from opensend_milter.core import counting, maillog
from opensend_milter.core.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
Page = Callable[[], bytes]
PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HOST = "127.0.0.1"
_PATIENCE_S = 5.0
_PR_SET_PDEATHSIG = 1
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@contextmanager
def shown(port: int, page: Page, *, key: str) -> Iterator[None]:
    """Show the page from a thread of this process; `key` is the port's name in the configuration."""
    with _server(port, page, key) as server:
        thread = threading.Thread(target=server.serve_forever, name="opensend-metrics", daemon=True)
        # It inherits what is blocked: a signal that it heard would be one that whoever waits for it does not.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def shown_beside(port: int, page: Page, *, key: str) -> Iterator[None]:
    """Show the page from a child, for a process that forks and so must have no thread.

    To be called before anything is opened that a child must not hold. The child ends with us.
    """
    parent = os.getpid()
    with _server(port, page, key) as server:
        pid = os.fork()
        if pid == 0:
            _become_child(server, parent)
    log.info("metrics on %s port %d (pid %d)", _HOST, port, pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _become_child(server: _Server, parent: int) -> None:
    """Answer for as long as our parent lives: whoever starts it again finds the port free."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ.pop("NOTIFY_SOCKET", None)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)  # the parent's business
        if os.getppid() == parent:
            server.serve_forever()
    finally:
        os._exit(0)


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, page: Page) -> None:
        self.page = page
        super().__init__((_HOST, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that went away."""


def _server(port: int, page: Page, key: str) -> _Server:
    try:
        return _Server(port, page)
    except OSError as error:
        raise ConfigError(f"{key}: cannot listen on {_HOST} port {port}: {error.strerror}") from error


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_S
    server_version = "opensend-milter"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a scrape."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            body = self.server.page()
        except Exception:
            log.exception("no metrics")
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
        """Log no scrape."""


def routes(page: Page, networks: Sequence[str]) -> list[Route]:
    """Return the route for those who call from one of the networks themselves."""
    # Not before: most who come here serve no HTTP, and the auth gate starts a sixth faster without it.
    from starlette.exceptions import HTTPException  # noqa: PLC0415
    from starlette.responses import Response  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    allowed = [ipaddress.ip_network(network) for network in networks]

    def show(request: Request) -> Response:
        if not _may_read(request, allowed):
            raise HTTPException(HTTPStatus.FORBIDDEN, "not from this network")
        return Response(page(), headers={"Content-Type": CONTENT_TYPE})

    return [Route(PATH, show, methods=["GET"])]


def _may_read(request: Request, allowed: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Judge by the peer of the socket; what came through a proxy, whose address says nothing, is turned away."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        peer = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    plain = getattr(peer, "ipv4_mapped", None) or peer
    return any(plain in network for network in allowed)


class CountedRequests:
    """Middleware that tells of every request, and counts it, by the route that answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and tell what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        # An answer that never began is one of ours that went wrong.
        code = int(HTTPStatus.SERVICE_UNAVAILABLE)

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", counting.OTHER)
            maillog.http_request(
                scope.get("state", {}).get("request_id", "-"),
                method=scope["method"],
                route=route,
                code=code,
                peer=(scope.get("client") or ["-"])[0] or "-",
                took_s=time.monotonic() - began,
            )
