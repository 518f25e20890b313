"""A small service manager: starts programs, starts again what dies, takes all down with itself."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from opensend_milter.core.errors import OpensendError
from opensend_milter.host.sandbox.keeper_death import start_clock

log = logging.getLogger(__name__)

ProgramState = Literal["stopped", "starting", "running", "waiting"]
TICK_S = 0.05
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 3.0
STEADY_S = 10.0
"""Who has run for so long is started again without a longer pause."""
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class NotStarted(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """A program did not come up."""


class _Stopped(Exception):  # noqa: N818
    """Somebody asked us to end."""


def _nothing() -> None:
    """Stand where there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is kept running."""

    name: str
    command: Callable[[], Sequence[str]]
    """Asked at every start, after `before`."""
    environment: Mapping[str, str]
    answers: Callable[[], bool] | None = None
    """None: it tells by itself (sd_notify)."""
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing
    """Once it answers, at every start."""
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 15.0
    start_s: float = 60.0
    own_session: bool = True
    """False: it makes its own session, and fails where it has one."""
    alone: bool = False
    """At the first start it waits for those before it, and those after it wait for it; others start side by side."""


@dataclass(slots=True)
class Child:
    """A program and how it fares."""

    program: Program
    notify: socket.socket
    process: subprocess.Popen[bytes] | None = None
    state: ProgramState = "stopped"
    restarts: int = 0
    started_at: float = 0.0
    start_again_at: float = 0.0
    asked_at: float = 0.0
    """When it was told to stop."""
    pause_s: float = SHORTEST_PAUSE_S
    ended_with: int | None = None
    """Exit code, or minus the signal."""
    told: bool = False
    welcomed: bool = False
    """It has answered once."""
    group: int = 0
    """Of processes: what a dead program left behind is found by it."""
    clock: int = 0
    """The kernel's start time: with the pid, it names one process for ever."""


@dataclass(slots=True)
class Keeper:
    """Keeps programs running until SIGTERM."""

    programs: Sequence[Program]
    run_dir: Path
    """For notify sockets and `children.json`."""
    log_dir: Path
    report: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    undertaker: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Start all in order, keep them, stop all in reverse order; raise NotStarted where one does not come up."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.children = [Child(program, self._listen(program.name)) for program in self.programs]
        try:
            self._hire()
            self._bring_up()
            self.report("ready")
            while True:
                self._wait()
        except _Stopped:
            log.info("asked to stop")
        finally:
            self._take_down()
            self._record()
            self._dismiss()

    def _listen(self, name: str) -> socket.socket:
        path = self.run_dir / "notify" / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.unlink(missing_ok=True)
        endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        endpoint.bind(str(path))
        return endpoint

    def _hire(self) -> None:
        """Start the undertaker: our end, however it comes, closes its standard input."""
        self._dismiss()
        self.undertaker = subprocess.Popen(
            [sys.executable, "-P", "-m", "opensend_milter.host.sandbox.keeper_death"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        for child in self.children:
            self._entrust(child)

    def _dismiss(self) -> None:
        if self.undertaker and self.undertaker.stdin:
            with suppress(BrokenPipeError):
                self.undertaker.stdin.close()
            self.undertaker.wait()

    def _entrust(self, child: Child) -> None:
        if child.process and self.undertaker and self.undertaker.stdin:
            with suppress(BrokenPipeError):  # it died just now: the next one is told of everybody
                self.undertaker.stdin.write(f"{child.process.pid} {child.clock} {int(child.program.stop_signal)}\n")

    def _bring_up(self) -> None:
        started: list[Child] = []
        for child in self.children:
            if child.program.alone:
                self._await(started)
            self.report(f"starting {child.program.name}")
            self._start(child)
            started.append(child)
            if child.program.alone:
                self._await(started)
        self._await(started)

    def _await(self, children: Sequence[Child]) -> None:
        """Wait until all of them answer; raise NotStarted for the first that does not."""
        waiting = [child for child in children if not child.welcomed]
        while waiting:
            for child in list(waiting):
                name, took_s = child.program.name, time.monotonic() - child.started_at
                if child.state == "running":
                    child.welcomed = True
                    waiting.remove(child)
                    self.report(f"started {name} ({took_s:.1f} s)")
                elif child.state != "starting" or took_s > child.program.start_s:
                    how = f"ended ({child.ended_with})" if child.state == "waiting" else "does not answer"
                    raise NotStarted(f"{name} {how}; its log says:\n{tail(self.log_dir / f'{name}.log')}")
            if waiting:
                self._wait()

    def _wait(self) -> None:
        """Let a moment pass and see to everybody."""
        busy = any(child.state != "running" for child in self.children)
        received = signal.sigtimedwait(_SIGNALS, TICK_S if busy else TICK_S * 4)
        # Not SIGHUP: the kernel sends it to who was stopped (SIGSTOP) while a child of his died.
        if received and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
            raise _Stopped
        if self.undertaker and self.undertaker.poll() is not None:
            self._hire()
        for child in self.children:
            self._see_to(child)

    def _see_to(self, child: Child) -> None:
        self._hear(child)
        process, now = child.process, time.monotonic()
        if process and process.poll() is not None:
            self._bury(child, process)
        elif child.state == "starting" and self._answers(child):
            self._welcome(child)
        elif child.state == "starting" and now - child.started_at > child.program.start_s:
            log.error("%s does not answer: killed", child.program.name)
            _kill_group(child, signal.SIGKILL)
        # What ends before it ever answered is not started again: the first start is to fail and say so.
        elif child.state == "waiting" and child.welcomed and now >= child.start_again_at:
            _kill_group(child, signal.SIGKILL)
            child.restarts += 1
            self._start(child)

    def _welcome(self, child: Child) -> None:
        try:
            child.program.after()
        except OSError as error:
            log.error("%s answers, and cannot be used: %s", child.program.name, error)  # noqa: TRY400
            return  # asked again until its time is over
        child.state = "running"
        self._record()

    def _bury(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        steady = now - child.started_at > STEADY_S
        child.pause_s = SHORTEST_PAUSE_S if steady else min(child.pause_s * 2, LONGEST_PAUSE_S)
        log.warning("%s (pid %d) ended: %d", child.program.name, process.pid, process.returncode)
        # What it has left behind may hold its ports and its files.
        _kill_group(child, signal.SIGTERM)
        child.ended_with = process.returncode
        child.process, child.state, child.start_again_at = None, "waiting", now + child.pause_s
        self._record()

    def _start(self, child: Child) -> None:
        program = child.program
        child.started_at, child.told, child.state = time.monotonic(), False, "starting"
        self._hear(child)
        child.told = False
        try:
            program.before()
            child.process = self._spawn(program)
        except (OSError, OpensendError) as error:
            log.error("%s cannot be started: %s", program.name, error)  # noqa: TRY400  # said in one line
            with (self.log_dir / f"{program.name}.log").open("a") as file:
                file.write(f"{error}\n")
            child.state, child.start_again_at = "waiting", time.monotonic() + LONGEST_PAUSE_S
            return
        child.group, child.clock = child.process.pid, start_clock(child.process.pid) or 0
        self._entrust(child)
        log.info("%s started (pid %d)", program.name, child.process.pid)
        self._record()

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        account = pwd.getpwnam(program.user) if program.user else None
        with (self.log_dir / f"{program.name}.log").open("ab") as output:
            return subprocess.Popen(
                list(program.command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.log_dir.parent,
                env={**program.environment, "NOTIFY_SOCKET": str(self.run_dir / "notify" / program.name)},
                start_new_session=program.own_session,
                preexec_fn=heir(program.stop_signal),  # noqa: PLW1509  # we have one thread
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
            )

    def _hear(self, child: Child) -> None:
        """Empty the socket: who tells its watchdog every second would block on a full one."""
        with suppress(BlockingIOError):
            while message := child.notify.recv(4096):
                child.told = child.told or b"READY=1" in message.split(b"\n")

    def _answers(self, child: Child) -> bool:
        return child.program.answers() if child.program.answers else child.told

    def _take_down(self) -> None:
        """Stop side by side what was started so."""
        asked: list[Child] = []
        for child in reversed(self.children):
            if child.program.alone:
                self._await_end(asked)
            self._ask_to_stop(child)
            asked.append(child)
            if child.program.alone:
                self._await_end(asked)
        self._await_end(asked)

    def _ask_to_stop(self, child: Child) -> None:
        if child.process and child.process.poll() is None:
            self.report(f"stopping {child.program.name}")
            child.process.send_signal(child.program.stop_signal)
            child.asked_at = time.monotonic()

    def _await_end(self, children: list[Child]) -> None:
        """Wait until all have ended, kill who takes too long, and empty the list."""
        while children:
            for child in list(children):
                self._hear(child)
                process = child.process
                if process and process.poll() is None:
                    if time.monotonic() < child.asked_at + child.program.stop_s:
                        continue
                    log.error("%s did not end in time: killed", child.program.name)
                if process:
                    _kill_group(child, signal.SIGKILL)
                    process.wait()
                child.process, child.state = None, "stopped"
                child.notify.close()
                children.remove(child)
            if children:
                signal.sigtimedwait({signal.SIGCHLD}, TICK_S)

    def _record(self) -> None:
        rows = [
            {
                "name": child.program.name,
                "pid": child.process.pid if child.process else None,
                "clock": child.clock,
                "state": child.state,
                "restarts": child.restarts,
            }
            for child in self.children
        ]
        path = self.run_dir / "children.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(rows))
        fresh.rename(path)


def heir(number: signal.Signals) -> Callable[[], None]:
    """Return what a child does between fork and exec, so that the kernel ends it when we die.

    The kernel forgets the wish when a process changes its user, so it is the last thing before exec.
    """
    parent = os.getpid()

    def inherit() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return inherit


def _kill_group(child: Child, number: signal.Signals) -> None:
    if child.group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.group, number)


def tail(path: Path, lines: int = 15) -> str:
    """Return the end of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(nothing)"
