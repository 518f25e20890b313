"""Prefork: one parent that holds the socket, children that answer; what dies is started again."""

from __future__ import annotations

import contextlib
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

DRAIN = b"D"
RELOAD = b"R"
READY = b"r"
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_RESTART_PAUSE_S = 0.5
_KILL_AFTER_S = 5.0


@dataclass(slots=True)
class Child:
    """One child and the two pipes between us."""

    pid: int
    orders: int
    """Ours to write. The child reads end of file when we die, and drains."""
    reports: int
    """The child's to write."""
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """The child's ends of the two pipes."""

    orders: int
    reports: int

    def ready(self) -> None:
        """Tell the parent that this child answers."""
        os.write(self.reports, READY)

    def next_order(self) -> bytes:
        """Wait for an order; a parent that is gone means DRAIN."""
        return os.read(self.orders, 1) or DRAIN


class Supervisor:
    """Keeps `count` children running until SIGTERM."""

    def __init__(
        self,
        child: Callable[[Line], None],
        *,
        count: int,
        drain_s: float,
        reload: Callable[[], bool],
        healthy: Callable[[], bool],
    ) -> None:
        """`child` runs in each child and must not return before it has drained.

        `reload` checks the new configuration; only if it is good the children are told. `healthy` is asked every
        second; on False all is stopped, and whoever started us starts us again.
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
        order_read, order_write = os.pipe()
        report_read, report_write = os.pipe()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_child(Line(order_read, report_write), (order_write, report_read))
        os.close(order_read)
        os.close(report_write)
        self._children[pid] = Child(pid, order_write, report_read)

    def _become_child(self, line: Line, parents: tuple[int, int]) -> None:
        # A sibling that kept another's order pipe open would hide from it that the parent died.
        for descriptor in (*parents, *(d for c in self._children.values() for d in (c.orders, c.reports))):
            os.close(descriptor)
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
                os.close(child.orders)
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
        if self._reload():
            self._order(RELOAD)
        notify("READY=1")

    def _order(self, order: bytes) -> None:
        for child in self._children.values():
            with contextlib.suppress(BrokenPipeError):  # it died just now; the next round reaps it
                os.write(child.orders, order)

    def _stop(self) -> None:
        """TERM, wait, KILL: a child whose sessions do not end is not waited for longer than promised."""
        log.info("stopping: %d processes", len(self._children))
        self._order(DRAIN)
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
