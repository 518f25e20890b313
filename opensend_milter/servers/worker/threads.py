"""The worker process: threads that deliver, announce and clear up; nothing that goes wrong outside ends one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from opensend_milter.core import counting
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.errors import TemporaryError
from opensend_milter.core.model import EmailId, Job, Parcel
from opensend_milter.core.ports import Courier, JobQueue, JobStore
from opensend_milter.servers.worker.delivering import Delivering, Extending, Inbox, Office, Settings

log = logging.getLogger(__name__)
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_ANNOUNCED_AT_ONCE = 10
"""SQS takes no more in one request."""
_DUE_AT_ONCE = 100
"""Each look into the database costs as much as a request to the queue."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_LONGEST_SILENCE_S = 4.0
"""Of the announcer, whose queue may answer again any time: one request says so."""
_REFUSED_S = 10.0
"""Until one is announced again that the queue refused while it took others."""
_SAID_EVERY_S = 60.0
_PRUNE_EVERY_S = 600.0
_ABORT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the worker is made of. Factories are called before the threads start."""

    store: Callable[[str], JobStore]
    """Called with the thread's name."""
    couriers: Callable[[], Mapping[CourierName, Courier]] | None
    """For one thread. None: somebody else delivers, we only announce."""
    default: CourierName
    compose: Callable[[Job], Parcel]
    queue: JobQueue | None
    steps: Mapping[str, Step] = field(default_factory=dict)
    """Further threads, by name."""


def run(
    parts: Parts, settings: Settings, *, ready: Callable[[], None], reload: Callable[[], None] | None = None
) -> None:
    """Run until SIGTERM or SIGINT; return when all in hand is finished, or `drain_s` is over. SIGHUP reloads."""
    heard = _STOP_SIGNALS | {signal.SIGHUP} if reload else _STOP_SIGNALS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # inherited by the threads: only we hear them
    try:
        worker = Worker(parts, settings)
        worker.start()
        ready()
        while (received := signal.sigwait(heard)) == signal.SIGHUP and reload:
            reload()
        log.info("stopping: %s", signal.Signals(received).name)
        worker.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Step(Protocol):
    """What a thread does again and again."""

    def step(self) -> float:
        """Do what is due; return how long to pause."""
        ...

    def close(self) -> None: ...


class Worker:
    """All threads of one worker process."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self._stop = threading.Event()
        self._drain_s = settings.drain_s
        self._threads: list[threading.Thread] = []
        self._delivering: list[Delivering] = []
        self._inbox = inbox = Inbox(parts.queue, settings) if parts.queue and parts.couriers else None
        if parts.couriers:
            office = Office(settings=settings, compose=parts.compose, default=parts.default, inbox=inbox)
            for number in range(settings.concurrency):
                name = f"opensend-worker-{number}"
                delivering = Delivering(parts.store(name), parts.couriers(), office)
                self._delivering.append(delivering)
                self._add(name, delivering.step, delivering.close)
            extending = Extending(parts.store("opensend-leases"), self._delivering, inbox, settings.lease_s)
            self._add("opensend-leases", extending.step, extending.store.close)
        if inbox:
            self._add("opensend-receiver", lambda: inbox.fill(self._stop))
        if parts.queue:
            announcing = Announcing(parts.store("opensend-announcer"), parts.queue, settings)
            self._add("opensend-announcer", announcing.step, announcing.store.close, longest_pause_s=_LONGEST_SILENCE_S)
        housekeeping = Housekeeping(parts.store("opensend-housekeeper"), settings)
        self._add("opensend-housekeeper", housekeeping.step, housekeeping.store.close)
        for name, step in parts.steps.items():
            self._add(name, step.step, step.close)

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()
        log.info("ready: %d threads", len(self._threads))

    def stop(self) -> None:
        """Claim nothing more, finish what is in hand; cut what takes too long, so that its outcome is recorded."""
        self._stop.set()
        if not self._join(self._drain_s):
            self._cut()
        if self._inbox:
            self._inbox.give_back()

    def _cut(self) -> None:
        for delivering in self._delivering:
            delivering.abort()
        if not self._join(_ABORT_S):
            still = ", ".join(thread.name for thread in self._threads if thread.is_alive())
            log.error("not finished in time, left to the lease: %s", still)

    def _join(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _add(
        self,
        name: str,
        step: Callable[[], float],
        close: Callable[[], None] | None = None,
        *,
        longest_pause_s: float = _LONGEST_PAUSE_S,
    ) -> None:
        # Daemons, because the process must end even where a call never returns.
        trouble = Trouble(longest_pause_s)
        thread = threading.Thread(target=self._repeat, args=(step, close, trouble), name=name, daemon=True)
        self._threads.append(thread)

    def _repeat(self, step: Callable[[], float], close: Callable[[], None] | None, trouble: Trouble) -> None:
        """Repeat a step, which returns how long to pause; trouble makes the pause longer and never ends it."""
        while not self._stop.is_set():
            with trouble.noted():
                pause_s = step()
            self._stop.wait(trouble.pause_s or pause_s)
        if close:
            close()


@dataclass(slots=True)
class Trouble:
    """What keeps one thread from its work."""

    longest_pause_s: float = _LONGEST_PAUSE_S
    pause_s: float = 0.0
    """How long to keep off, 0 when all is well."""
    _said_at: float = 0.0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Swallow what is raised, log it at most once a minute, and lengthen the pause."""
        try:
            yield
        except TemporaryError as error:
            self._keep_off()
            if time.monotonic() - self._said_at > _SAID_EVERY_S or not self._said_at:
                self._said_at = time.monotonic()
                log.warning("%s: trying on: %s", threading.current_thread().name, error)
        except Exception:
            self._keep_off()
            log.exception("%s: unexpected, trying on", threading.current_thread().name)
        else:
            if self.pause_s:
                log.info("%s: goes on", threading.current_thread().name)
            self.pause_s = self._said_at = 0.0

    def _keep_off(self) -> None:
        self.pause_s = min(max(self.pause_s * 2, _FIRST_PAUSE_S), self.longest_pause_s)


@dataclass(slots=True)
class Announcing:
    """Tells the queue what is in the outbox."""

    store: JobStore
    queue: JobQueue
    settings: Settings

    def step(self) -> float:
        """Announce a batch, in as many requests as the queue needs."""
        batch = self.store.due_announcements(_DUE_AT_ONCE)
        due = [one.email_id for one in batch]
        taken: list[EmailId] = []
        asked = 0
        try:
            for first in range(0, len(batch), _ANNOUNCED_AT_ONCE):
                taken += self.queue.announce(batch[first : first + _ANNOUNCED_AT_ONCE])
                asked = first + _ANNOUNCED_AT_ONCE
        finally:
            if taken:
                counting.announced(len(taken))
                self.store.announced(taken)
            if refused := [one for one in due[:asked] if one not in set(taken)]:
                self.store.announce_again(refused, _REFUSED_S)
            # A queue that is out is asked again soon, and then has all that waits at once.
            if untried := due[asked:]:
                self.store.announce_again(untried, 0)
        return 0.0 if len(batch) == _DUE_AT_ONCE else self.settings.poll_interval_s


@dataclass(slots=True)
class Housekeeping:
    """Ends leases and deletes what is old."""

    store: JobStore
    settings: Settings
    _pruned_at: float = field(default=float("-inf"))

    def step(self) -> float:
        """Do what is due."""
        released = self.store.release_expired()
        if released:
            log.warning("%d leases had ended", released)
        if ended := self.store.end_moved_on():
            log.info("%d jobs ended: their emails were taken up without us", ended)
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            if put_off := self.store.set_right():
                log.warning("%d jobs are due: the database's clock was ahead when they were put off", put_off)
            if made_whole := self.store.make_whole():
                log.info("%d emails have their attachments in their rows now, for OpenSend's worker", made_whole)
            self.store.prune()
            self._pruned_at = time.monotonic()
        return self.settings.housekeeping_s
