"""Outlives a child that answers connections: each that it left behind is told 421, so that its client comes again.

Postfix remembers for as long as a connection lasts that its milter has died, and puts off all that comes on it. So the
children hand a duplicate of each connection to a keeper, a process of its own. When one dies, the keeper writes one
answer on each of its connections, and reads on without looking: whatever Postfix asks next finds that answer, and
after a 421 it closes the client's connection.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from opensend_milter.core.rules import COME_AGAIN

log = logging.getLogger(__name__)

_GOOD_BYE = f"{COME_AGAIN} temporary failure on our side; connect again".encode()
NAME = "opensend-keeper"
"""Of its process; the kernel keeps fifteen letters."""
_SMFIR_REPLYCODE = b"y"
_ANSWER = struct.pack("!Ic", len(_GOOD_BYE) + 2, _SMFIR_REPLYCODE) + _GOOD_BYE + b"\0"
_NEWS = struct.Struct("!cQQ")
"""Whether a connection is there or gone, the process that has it, its inode."""
_THERE, _GONE = b"+", b"-"
_FIRST_OF_OURS = 3
"""After what each process begins with."""
_START_EVERY_S = 1.0
_GATHER_S = 0.05
_LOOK_EVERY_S = 1.0
_READ_BYTES = 65_536
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Orphanage:
    """The parent's part: sees to it that there is a keeper, and lends children the way to it."""

    def __init__(self, path: Path) -> None:
        """`path`: of the socket that connections come to."""
        self._path = path
        self._childrens, self._keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._keeper = 0
        self._began = 0.0

    def see_to_it(self) -> None:
        """Start the keeper if there is none; to be called now and then."""
        if time.monotonic() - self._began < _START_EVERY_S:
            return
        if self._keeper and not os.waitpid(self._keeper, os.WNOHANG)[0]:
            return
        self._began = time.monotonic()
        parent = os.getpid()
        sys.stderr.flush()
        self._keeper = os.fork()
        if not self._keeper:
            self._keep(parent)

    def _keep(self, parent: int) -> None:
        try:
            # A socket or a pipe that lived on here would hide the end of those who answer.
            for first, last in pairwise([_FIRST_OF_OURS - 1, self._keepers.fileno(), os.sysconf("SC_OPEN_MAX")]):
                os.closerange(first + 1, last)
            Path("/proc/self/comm").write_text(NAME)
            Keeper(self._keepers).run(parent)
        except BaseException:
            log.exception("the keeper of connections failed")
        finally:
            os._exit(0)

    def announcing(self) -> Announcing:
        """Return a child's part."""
        return Announcing(self._childrens, str(self._path))

    def close(self) -> None:
        """End the keeper: nobody is left who could die."""
        if self._keeper:
            os.kill(self._keeper, signal.SIGKILL)
            os.waitpid(self._keeper, 0)


class Announcing:
    """A child's part: tells the keeper which connections it has."""

    def __init__(self, channel: socket.socket, path: str) -> None:
        self._channel = channel
        self._path = path
        self._is_news = threading.Event()
        self._known: dict[int, bool] = {}
        """Of each socket of this process, by inode: whether it is a connection that came to the path."""

    def start(self) -> None:
        """Begin to look for connections."""
        threading.Thread(target=self._run, name="opensend-announcing", daemon=True).start()

    def connected(self) -> None:
        """Look for a new one soon."""
        self._is_news.set()

    def _run(self) -> None:
        while True:
            self._is_news.wait(_LOOK_EVERY_S if any(self._known.values()) else None)
            time.sleep(_GATHER_S)
            self._is_news.clear()
            self._look()

    def _look(self) -> None:
        found = _sockets()
        for inode in self._known.keys() - found.keys():
            if self._known.pop(inode):
                self._channel.send(_NEWS.pack(_GONE, os.getpid(), inode))
        for inode in found.keys() - self._known.keys():
            with suppress(OSError), socket.socket(fileno=os.dup(found[inode])) as line:
                # Asked of the duplicate: the number itself may be another's by now.
                inode_now = os.fstat(line.fileno()).st_ino
                self._known[inode_now] = is_ours = self._came_to_us(line)
                if is_ours:
                    socket.send_fds(self._channel, [_NEWS.pack(_THERE, os.getpid(), inode_now)], [line.fileno()])

    def _came_to_us(self, line: socket.socket) -> bool:
        return (
            line.family == socket.AF_UNIX
            and line.getsockname() == self._path
            and not line.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )


def _sockets() -> dict[int, int]:
    """Return the descriptor of each socket of this process, by inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # a path for each costs more than all the rest
        with suppress(OSError):
            about = os.fstat(int(name))
            if stat.S_ISSOCK(about.st_mode):
                found[about.st_ino] = int(name)
    return found


class Keeper:
    """Holds what children hand over, until Postfix closes it or, should the child go first, has had its answer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._events = select.epoll()
        self._lines: dict[int, dict[int, socket.socket]] = {}
        """Of each child that lives, by inode."""
        self._deaths: dict[int, int] = {}
        """Which child it is whose end can be read from a descriptor."""
        self._owners: dict[int, tuple[int, int]] = {}
        """Child and inode of a connection, by descriptor."""
        self._orphans: dict[int, socket.socket] = {}
        """Connections that nobody answers any more, by descriptor."""

    def run(self, parent: int) -> None:
        """Keep until the parent is gone and nobody waits for an answer."""
        parents_death = os.pidfd_open(parent)
        self._events.register(parents_death, select.EPOLLIN)
        self._events.register(self._channel, select.EPOLLIN)
        ended = False
        while not ended or self._lines or self._orphans:
            for descriptor, event in self._events.poll():
                if descriptor == parents_death:
                    self._events.unregister(parents_death)
                    ended = True
                elif descriptor == self._channel.fileno():
                    self._take_news()
                elif descriptor in self._deaths:
                    self._bury(descriptor)
                elif descriptor in self._orphans:
                    self._listen(descriptor)
                elif event & _ENDED and descriptor in self._owners:
                    self._let_go(*self._owners[descriptor])

    def _take_news(self) -> None:
        news, descriptors, _, _ = socket.recv_fds(self._channel, _NEWS.size, 1)
        kind, child, inode = _NEWS.unpack(news)
        if kind == _GONE:
            self._let_go(child, inode)
            return
        if not descriptors:  # as many are held as this process may have
            return
        line = socket.socket(fileno=descriptors[0])
        if not self._is_alive(child):
            self._adopt(line)
            return
        self._lines[child][inode] = line
        self._owners[line.fileno()] = child, inode
        self._events.register(line, select.EPOLLRDHUP)

    def _is_alive(self, child: int) -> bool:
        """Tell whether it lives, and see to it that we are told when it does not."""
        if child not in self._lines:
            try:
                death = os.pidfd_open(child)
            except ProcessLookupError:
                return False
            self._lines[child] = {}
            self._deaths[death] = child
            self._events.register(death, select.EPOLLIN)
        return True

    def _let_go(self, child: int, inode: int) -> None:
        line = self._lines.get(child, {}).pop(inode, None)
        if line:
            del self._owners[line.fileno()]
            self._close(line)

    def _bury(self, death: int) -> None:
        child = self._deaths.pop(death)
        self._events.unregister(death)
        os.close(death)
        lines = self._lines.pop(child)
        for line in lines.values():
            del self._owners[line.fileno()]
            self._events.unregister(line)
            self._adopt(line)
        if lines:
            log.warning("child %d is gone: %d connections are told to come again", child, len(lines))

    def _adopt(self, line: socket.socket) -> None:
        with suppress(OSError):  # Postfix has gone, too; the next event says so
            line.send(_ANSWER, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self._orphans[line.fileno()] = line
        self._events.register(line, select.EPOLLIN | select.EPOLLRDHUP)

    def _listen(self, descriptor: int) -> None:
        """Read what nobody wants to know: Postfix must get rid of it before it looks for an answer."""
        line = self._orphans[descriptor]
        with suppress(BlockingIOError):
            try:
                is_open = bool(line.recv(_READ_BYTES, socket.MSG_DONTWAIT))
            except ConnectionError:
                is_open = False
            if not is_open:
                del self._orphans[descriptor]
                self._close(line)

    def _close(self, line: socket.socket) -> None:
        # As long as somebody else has it open, closing it would not end what we are told of it.
        self._events.unregister(line)
        line.close()
