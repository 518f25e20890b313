"""A TCP connection in our hands: let through, cut, swallowed, slowed, or dead on one side."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Literal, Self

from tests.waiting import scaled_s

Place = Callable[[], AbstractContextManager[None]]
"""Within it, sockets are opened somewhere else than here."""
Way = Literal["through", "cut", "silent", "slow"]
"""`silent`: what is said is swallowed, and nobody hangs up."""
SLOW_S = 0.1
"""For each piece, either way."""
PIECE_BYTES = 65_536
_RESET = struct.pack("ii", 1, 0)


class Cable:
    """Listens on a port of its own and stands for another port, each of this host unless places are given."""

    def __init__(
        self, port: int, *, address: str = "127.0.0.1", near: Place = nullcontext, far: Place = nullcontext
    ) -> None:
        self._to, self._far = port, far
        with near():
            self._listener = socket.create_server((address, 0), backlog=128)
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self.way: Way = "through"
        """Of connections that are still to come; see `turn` for all."""

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._listening = threading.Thread(target=self._listen, name="cable", daemon=True)
        self._listening.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listening.join()
        self._listener.close()
        self.hang_up()

    def turn(self, way: Way) -> None:
        """Change the way of all connections, those that are open and those to come."""
        self.way = way
        self.turn_open(way)
        if way == "cut":
            self.hang_up()

    def turn_open(self, way: Way) -> None:
        """Change the way of open connections alone."""
        with self._lock:
            for pair in self._pairs:
                pair.way = way

    def hang_up(self, *ways: Way) -> None:
        """Reset what is open; where ways are named, only what is of one of them."""
        with self._lock:
            ended = [pair for pair in self._pairs if not ways or pair.way in ways]
            self._pairs = [pair for pair in self._pairs if pair not in ended]
        for pair in ended:
            pair.reset()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), name="cable-connect", daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            if self.way == "cut":
                raise ConnectionAbortedError
            with self._far():
                far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            _reset(near)
            return
        pair = _Pair(near, far, self.way)
        with self._lock:
            self._pairs = [one for one in self._pairs if not one.over] + [pair]
        pair.run()


class _Pair:
    def __init__(self, near: socket.socket, far: socket.socket, way: Way) -> None:
        self._near, self._far, self.way = near, far, way
        self._stopped = threading.Event()
        for endpoint in (near, far):
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def over(self) -> bool:
        return self._stopped.is_set()

    def run(self) -> None:
        for source, target in ((self._near, self._far), (self._far, self._near)):
            threading.Thread(target=self._carry, args=(source, target), name="cable-carry", daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                if self.way == "slow":
                    self._stopped.wait(scaled_s(SLOW_S))
                if self.way != "silent":
                    target.sendall(piece)
        if self.way != "silent":
            self.reset()

    def reset(self) -> None:
        """End both sides; a thread that reads one of them wakes up."""
        self._stopped.set()
        for endpoint in (self._near, self._far):
            _reset(endpoint)


def _reset(endpoint: socket.socket) -> None:
    """Close as a firewall does that has had enough: without a farewell."""
    with suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        endpoint.shutdown(socket.SHUT_RD)
    endpoint.close()
