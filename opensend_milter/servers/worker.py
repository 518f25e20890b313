"""Claims and delivers, announces, and clears up; nothing that goes wrong outside ends it."""

from __future__ import annotations

import logging
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from opensend_milter.core.delivery import Delivery
from opensend_milter.core.errors import QueueUnavailable, TemporaryError
from opensend_milter.core.model import Job, Notice, Parcel
from opensend_milter.core.ports import Courier, JobQueue, JobStore

log = logging.getLogger(__name__)
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_ANNOUNCED_AT_ONCE = 10
_LONG_POLL_S = 5.0
"""Also how long a stop may have to wait."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_SAID_EVERY_S = 60.0
_PRUNE_EVERY_S = 600.0
_ABORT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the worker is made of. Factories are called before the threads start, with the thread's name."""

    store: Callable[[str], JobStore]
    courier: Callable[[], Courier] | None
    """None: somebody else delivers, we only announce."""
    compose: Callable[[Job], Parcel]
    queue: JobQueue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the worker runs."""

    concurrency: int
    poll_interval_s: float
    max_attempts: int
    drain_s: float = 30.0
    housekeeping_s: float = 10.0
    poll_after_s: float = 60.0
    """A queue unreachable for so long, and the database is polled: no message waits for ever."""


def run(parts: Parts, settings: Settings, *, ready: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT; return when all in hand is finished, or `drain_s` is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # inherited by the threads: only we hear them
    try:
        worker = Worker(parts, settings)
        worker.start()
        ready()
        received = signal.sigwait(_STOP_SIGNALS)
        log.info("stopping: %s", signal.Signals(received).name)
        worker.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """All threads of one worker process."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self._stop = threading.Event()
        self._drain_s = settings.drain_s
        self._couriers: list[Courier] = []
        self._threads: list[threading.Thread] = []
        self._inbox = inbox = Inbox(parts.queue, settings) if parts.queue and parts.courier else None
        if parts.courier:
            for number in range(settings.concurrency):
                name = f"opensend-worker-{number}"
                courier = parts.courier()
                self._couriers.append(courier)
                delivering = Delivering(parts.store(name), courier, parts.compose, inbox, settings)
                self._add(name, delivering.step, delivering.close)
        if inbox:
            self._add("opensend-receiver", lambda: inbox.fill(self._stop))
        if parts.queue:
            announcing = Announcing(parts.store("opensend-announcer"), parts.queue, settings)
            self._add("opensend-announcer", announcing.step, announcing.store.close)
        housekeeping = Housekeeping(parts.store("opensend-housekeeper"), settings)
        self._add("opensend-housekeeper", housekeeping.step, housekeeping.store.close)

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
        for courier in self._couriers:
            courier.abort()
        if not self._join(_ABORT_S):
            still = ", ".join(thread.name for thread in self._threads if thread.is_alive())
            log.error("not finished in time, left to the lease: %s", still)

    def _join(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _add(self, name: str, step: Callable[[], float], close: Callable[[], None] | None = None) -> None:
        # Daemons, because the process must end even where a call never returns.
        thread = threading.Thread(target=self._repeat, args=(step, close), name=name, daemon=True)
        self._threads.append(thread)

    def _repeat(self, step: Callable[[], float], close: Callable[[], None] | None) -> None:
        """Repeat a step, which returns how long to pause; trouble makes the pause longer and never ends it."""
        trouble = Trouble()
        while not self._stop.is_set():
            with trouble.noted():
                pause_s = step()
            self._stop.wait(trouble.pause_s or pause_s)
        if close:
            close()


@dataclass(slots=True)
class Trouble:
    """What keeps one thread from its work."""

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
        self.pause_s = min(max(self.pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)


class Inbox:
    """Notices on their way from the queue to the threads that deliver."""

    def __init__(self, jobs: JobQueue, settings: Settings) -> None:
        self._jobs = jobs
        self._notices: queue.Queue[Notice] = queue.Queue(settings.concurrency)
        self._poll_after_s = settings.poll_after_s
        self._reached_at = time.monotonic()

    def fill(self, stop: threading.Event) -> float:
        """Fetch once, and hand all over."""
        for notice in self._jobs.receive(_LONG_POLL_S):
            while not self._has_taken(notice):
                if stop.is_set():
                    self._give_back(notice)
                    break
        self._reached_at = time.monotonic()
        return 0.0

    def _has_taken(self, notice: Notice) -> bool:
        try:
            self._notices.put(notice, timeout=0.5)
        except queue.Full:
            self._reached_at = time.monotonic()  # it is we who are slow
            return False
        return True

    def next(self, timeout_s: float) -> Notice | None:
        """Return the next notice, or None after a while."""
        try:
            return self._notices.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def is_cut_off(self) -> bool:
        """Tell whether the queue has not answered for long."""
        return time.monotonic() - self._reached_at > self._poll_after_s

    def done(self, notice: Notice) -> None:
        """Take it off the queue: what came of it, or is to come, is in the database."""
        try:
            self._jobs.done(notice)
        except QueueUnavailable as error:
            log.debug("email=%s notice comes again: %s", notice.email_id, error)

    def give_back(self) -> None:
        """Leave what nobody has looked at to the next worker."""
        while notice := self.next(0):
            self._give_back(notice)

    def _give_back(self, notice: Notice) -> None:
        try:
            self._jobs.give_back(notice)
        except QueueUnavailable as error:
            log.debug("email=%s notice comes again later: %s", notice.email_id, error)


class Delivering:
    """Takes one job after the other."""

    def __init__(
        self,
        store: JobStore,
        courier: Courier,
        compose: Callable[[Job], Parcel],
        inbox: Inbox | None,
        settings: Settings,
    ) -> None:
        self._store = store
        self._courier = courier
        self._inbox = inbox
        self._notice: Notice | None = None
        self._poll_interval_s = settings.poll_interval_s
        self._delivery = Delivery(
            store=store,
            courier=courier,
            compose=compose,
            max_attempts=settings.max_attempts,
            clock=lambda: datetime.now(UTC),
            jitter=random.random,
            sleep=time.sleep,
        )

    def step(self) -> float:
        """Deliver one message, if one is due; return how long to pause."""
        inbox = self._inbox
        found = self._deliver_due() if inbox is None or inbox.is_cut_off() else self._deliver_noticed(inbox)
        if found:
            return 0.0
        self._courier.rest()
        return self._poll_interval_s if inbox is None or inbox.is_cut_off() else 0.0

    def _deliver_due(self) -> bool:
        job = self._store.claim_due()
        if job:
            self._delivery.attempt(job)
        return job is not None

    def _deliver_noticed(self, inbox: Inbox) -> bool:
        # Kept where the database is away: otherwise the queue would bring it back only when its lease ends.
        self._notice = notice = self._notice or inbox.next(self._poll_interval_s)
        if notice is None:
            return False
        job = self._store.claim(notice.email_id)
        if job:
            self._delivery.attempt(job)
        inbox.done(notice)
        self._notice = None
        return True

    def close(self) -> None:
        """Let go of both connections."""
        self._courier.close()
        self._store.close()


@dataclass(slots=True)
class Announcing:
    """Tells the queue what is in the outbox."""

    store: JobStore
    queue: JobQueue
    settings: Settings

    def step(self) -> float:
        """Announce one batch."""
        due = self.store.due_announcements(_ANNOUNCED_AT_ONCE)
        if due and (taken := self.queue.announce(due)):
            self.store.announced(taken)
        return 0.0 if len(due) == _ANNOUNCED_AT_ONCE else self.settings.poll_interval_s


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
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            self.store.prune()
            self._pruned_at = time.monotonic()
        return self.settings.housekeeping_s
