"""A host on a wire to a switch: two network namespaces of this kernel, and nothing that anybody else sees."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.stand import NotRun
from tests.waiting import await_true

SWITCH, HOST, MOVED = "10.77.0.1", "10.77.0.2", "10.77.0.3"
SLOW = ("tbf", "rate", "256kbit", "burst", "8kb", "latency", "300ms")
"""Where netem is, tbf is as well, and not the other way round."""
_CLONE_NEWNET = 0x40000000
_setns = ctypes.CDLL(None, use_errno=True).setns


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network of its own."""

    name: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread open sockets and start processes there."""
        with Path("/proc/thread-self/ns/net").open("rb") as here, (Path("/run/netns") / self.name).open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def ip(self, *words: str) -> None:
        _run("ip", "-n", self.name, *words)

    def slow(self) -> None:
        """Let what it sends trickle, and drop what is too much for that."""
        try:
            _run("tc", "-n", self.name, "qdisc", "add", "dev", "wire", "root", *SLOW)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotRun(f"no filter that slows: {_said(error)}") from error

    def quick(self) -> None:
        _run("tc", "-n", self.name, "qdisc", "del", "dev", "wire", "root")

    def kill(self) -> None:
        """Kill all that runs there."""

        def nobody() -> bool:
            pids = [int(pid) for pid in _run("ip", "netns", "pids", self.name).split()]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        await_true(nobody, f"nobody runs in {self.name}")


@dataclass(frozen=True, slots=True)
class Wire:
    """Both ends of it."""

    switch: Namespace
    host: Namespace

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """Let nothing through, and nobody be told."""
        self.switch.ip("link", "set", "wire", "down")
        try:
            yield
        finally:
            self.switch.ip("link", "set", "wire", "up")

    @contextmanager
    def slow(self) -> Iterator[None]:
        with ExitStack() as stack:
            for end in (self.switch, self.host):
                end.slow()
                stack.callback(end.quick)
            yield

    def move(self) -> None:
        """Give the host another address: open connections are dead on both sides, new ones are good."""
        self.host.ip("address", "del", f"{HOST}/24", "dev", "wire")
        self.host.ip("address", "add", f"{MOVED}/24", "dev", "wire")


@contextmanager
def wired() -> Iterator[Wire]:
    """Make it, or say why that cannot be done."""
    switch, host = (Namespace(f"chaos-{os.getpid()}-{name}") for name in ("switch", "host"))
    with ExitStack() as stack:
        try:
            for one in (switch, host):
                _run("ip", "netns", "add", one.name)
                stack.callback(_run, "ip", "netns", "del", one.name)
            switch.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", host.name)
            for one, address in ((switch, SWITCH), (host, HOST)):
                one.ip("address", "add", f"{address}/24", "dev", "wire")
                for device in ("lo", "wire"):
                    one.ip("link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotRun(f"no network namespaces: {_said(error)}") from error
        stack.callback(host.kill)
        yield Wire(switch, host)


def _enter(descriptor: int) -> None:
    if _setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _said(error: Exception) -> str:
    return str(getattr(error, "stderr", "") or error).strip()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
