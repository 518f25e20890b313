"""Prefork: one parent that holds the socket, children that answer; what dies is started again."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

READY = b"r"
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_RESTART_PAUSE_S = 0.5
_KILL_AFTER_S = 5.0
_LONGEST_ORDER = 200_000


@dataclass(slots=True)
class Child:
    """One child and what we have between us."""

    pid: int
    orders: socket.socket
    """Ours to write. The child reads end of file when we die, and drains."""
    reports: int
    """A pipe, the child's to write."""
    ready: bool = False
    untold: bytes = b""
    """The order that it had no room for yet."""


@dataclass(frozen=True, slots=True)
class Line:
    """The child's ends."""

    orders: socket.socket
    reports: int

    def ready(self) -> None:
        """Tell the parent that this child answers."""
        os.write(self.reports, READY)

    def next_order(self) -> bytes:
        """Wait for what a reload brought; nothing means drain, as does a parent that is gone."""
        return self.orders.recv(_LONGEST_ORDER)


class Supervisor:
    """Keeps `count` children running until SIGTERM."""

    def __init__(
        self,
        child: Callable[[Line], None],
        *,
        count: int,
        drain_s: float,
        reload: Callable[[], bytes | None],
        healthy: Callable[[], bool],
    ) -> None:
        """`child` runs in each child and must not return before it has drained.

        `reload` returns the new configuration for the children, or None if it is not to be used. `healthy` is asked
        every second; on False all is stopped, and whoever started us starts us again.
        """
        self._healthy = healthy
        self._child = child
        self._count = count
        self._drain_s = drain_s
        self._reload = reload
        self._children: dict[int, Child] = {}

    def run(self) -> None:
        """Start the children, keep them, and return when all have ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for _ in range(self._count):
            self._start()
        waiting = True
        while True:
            received = signal.sigtimedwait(_SIGNALS, 0.05 if waiting else 1.0)
            self._reap()
            if received and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                break
            if received and received.si_signo == signal.SIGHUP:
                self._tell_to_reload()
            self._tell_again()
            if not self._healthy():
                log.error("our socket is gone from its place: stopping, to be started again")
                break
            self._fill()
            if waiting and self._all_ready():
                waiting = False
                log.info("ready: %d processes", len(self._children))
                notify("READY=1")
            if "WATCHDOG_USEC" in os.environ:
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        self._stop()

    def _start(self) -> None:
        # Keeps one order from the next, and ends for the child when our end is closed.
        ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        # The kernel grants twice what it is asked for.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_ORDER // 2)
        report_read, report_write = os.pipe()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_child(Line(childs, report_write), Child(os.getpid(), ours, report_read))
        childs.close()
        os.close(report_write)
        self._children[pid] = Child(pid, ours, report_read)

    def _become_child(self, line: Line, myself: Child) -> None:
        # A sibling that kept another's orders open would hide from it that the parent died.
        for child in (myself, *self._children.values()):
            child.orders.close()
            os.close(child.reports)
        os.environ.pop("NOTIFY_SOCKET", None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        code = 1
        try:
            self._child(line)
            code = 0
        except BaseException:
            log.exception("child failed")
        finally:
            # Past libmilter's own clean-up, which would remove the socket that our siblings listen on.
            sys.stderr.flush()
            os._exit(code)

    def _all_ready(self) -> bool:
        for child in self._children.values():
            if not child.ready and select.select([child.reports], [], [], 0)[0]:
                child.ready = os.read(child.reports, 1) == READY
        return all(child.ready for child in self._children.values())

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                child = self._children.pop(pid)
                child.orders.close()
                os.close(child.reports)
                log.warning("child %d ended: %s", pid, _how_it_ended(status))

    def _fill(self) -> None:
        """Start what is missing, not faster than a child could fail again."""
        if len(self._children) < self._count:
            time.sleep(_RESTART_PAUSE_S)
        while len(self._children) < self._count:
            self._start()

    def _tell_to_reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if order := self._reload():
            for child in self._children.values():
                child.untold = order
        self._tell_again()
        notify("READY=1")

    def _tell_again(self) -> None:
        """Tell who has not been told; only the newest order counts."""
        for child in self._children.values():
            if not child.untold:
                continue
            try:
                child.orders.send(child.untold)
            except BlockingIOError:
                continue  # it has not read those before; another round
            except ConnectionError:
                pass  # it died just now; the next round reaps it
            except OSError as error:
                log.error("child %d keeps the old configuration: %s", child.pid, error.strerror)  # noqa: TRY400
            child.untold = b""

    def _stop(self) -> None:
        """TERM, wait, KILL: a child whose sessions do not end is not waited for longer than promised."""
        log.info("stopping: %d processes", len(self._children))
        for child in self._children.values():
            child.orders.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + self._drain_s + _KILL_AFTER_S
        while self._children and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._reap()
        for pid in self._children:
            log.error("child %d did not end in time: killed", pid)
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def notify(state: str) -> None:
    """Tell systemd (sd_notify); without it, nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    address = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as endpoint:
        try:
            # Nobody may be reading; that must not stop the mail.
            endpoint.sendto(state.encode(), socket.MSG_DONTWAIT, address)
        except OSError as error:
            log.warning("cannot notify %s: %s", address, error)
