"""Connections: so many in all, of which one client has its part; who was silent longest makes room for the next."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from opensend_milter.core import counting
from opensend_milter.core.rates import client_of
from opensend_milter.servers.web.room import part_of
from opensend_milter.servers.web.visits import BODY_S

MOST_CONNECTIONS = 1_000
"""TLS takes 0.1 MB for each, from before its handshake."""
IDLE_S = 15
"""A connection that says nothing for so long is closed, also before its first request."""
_UNIX_PEER = ("127.0.0.1", 0)
"""Whoever may connect to a unix socket is of this host."""
UNIX_PEERS = ("127.0.0.1/32",)
_SHARED = ""
"""Stands for a client whose address is that of many."""
_CRUMB_OCTETS, _MOST_CRUMBS = 64, 4_096
"""A chunk of one octet costs as much as one of thousands."""


class Connections:
    """Those that are open, who was silent longest first. None of them is cut off while its request is in hand."""

    def __init__(self, share_percent: int = 100, is_proxy: Callable[[str], bool] = lambda _: False) -> None:
        """`is_proxy` tells whether an address is that of many clients: it may have all connections that there are."""
        self._part = part_of(MOST_CONNECTIONS, share_percent)
        self._is_proxy = is_proxy
        self._open: OrderedDict[int, _Accepted] = OrderedDict()
        self._of: Counter[str] = Counter()

    def let_in(self, accepted: _Accepted, address: str) -> bool:
        """Hold one more; False: all that could make room have a request in hand."""
        client = _SHARED if not address or self._is_proxy(address) else client_of(address)
        if client and self._of[client] >= self._part and not self._hang_up(client):
            return False
        if len(self._open) >= MOST_CONNECTIONS and not self._hang_up():
            return False
        accepted.client = client
        self._open[accepted.fileno()] = accepted
        self._of[client] += 1
        return True

    def note(self, descriptor: int, *, is_busy: bool) -> None:
        """Take down that it has said something, or was answered."""
        if found := self._open.get(descriptor):
            found.is_busy = is_busy
            self._open.move_to_end(descriptor)

    def forget(self, accepted: _Accepted) -> None:
        """Count it no longer."""
        if self._open.get(accepted.fileno()) is accepted:
            del self._open[accepted.fileno()]
            self._of[accepted.client] -= 1
            if not self._of[accepted.client]:
                del self._of[accepted.client]

    def _hang_up(self, client: str | None = None) -> bool:
        """Hang up on one, of this client or of any; its transport hears of it as if the other side had done so."""
        for accepted in self._open.values():
            if not accepted.is_busy and client in (None, accepted.client):
                self.forget(accepted)
                with suppress(OSError):
                    accepted.shutdown(socket.SHUT_RDWR)
                counting.http_connection_cut()
                return True
        return False


class Door(socket.socket):
    """A listening socket. Who comes in is counted here, because TLS takes its memory before there is a connection."""

    def __init__(self, listener: socket.socket, connections: Connections) -> None:
        super().__init__(listener.family, listener.type, listener.proto, listener.detach())
        self._connections = connections

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next one that is let in."""
        while True:
            made, address = super().accept()
            accepted = _Accepted(made, self._connections)
            if self._connections.let_in(accepted, address[0] if address and self.family != socket.AF_UNIX else ""):
                return accepted, address
            accepted.close()


class _Accepted(socket.socket):
    client = _SHARED
    is_busy = False

    def __init__(self, made: socket.socket, connections: Connections) -> None:
        super().__init__(made.family, made.type, made.proto, made.detach())
        self._connections = connections

    def close(self) -> None:
        self._connections.forget(self)
        super().close()


class Connection(H11Protocol):
    """Waits for the first request no longer than for the next one, for no head that drips in, and for no reader."""

    _head_by = 0.0
    _descriptor = -1
    _unread: asyncio.TimerHandle | None = None

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self.conn = _Framing(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        self._descriptor = connection.fileno()
        if connection.family == socket.AF_UNIX:
            self.client = _UNIX_PEER
        else:
            # asyncio does so only for sockets that were made with IPPROTO_TCP; head and body are two writes, and with
            # Nagle's algorithm the second one waits 40 ms for the client's delayed ACK.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._note():
            self._head_by = 0.0
        else:
            self._head_by = self._head_by or self.loop.time() + BODY_S
            self.timeout_keep_alive_task = self.loop.call_at(self._head_by, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(BODY_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cease_to_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cease_to_wait()

    def send_400_response(self, msg: str) -> None:
        # Who was answered and goes on with what is no HTTP has no second answer; uvicorn would log a traceback.
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def _note(self) -> bool:
        is_busy = self.cycle is not None and not self.cycle.response_complete
        self._connections.note(self._descriptor, is_busy=is_busy)
        return is_busy

    def _cease_to_wait(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None


class _Framing(h11.Connection):
    """Takes no body in crumbs, and none of which a proxy in front may have seen another end."""

    _crumbs = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._crumbs = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("two lengths of one body")  # RFC 9112, 6.1
        elif isinstance(event, h11.Data) and len(event.data) < _CRUMB_OCTETS:
            self._crumbs += 1
            if self._crumbs > _MOST_CRUMBS:
                raise h11.RemoteProtocolError("a body in too many small chunks")
        return event
