"""What the delivering threads do: whose turn it is, which job, and what is in hand meanwhile."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opensend_milter.core.breaker import Breaker
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.delivery import Delivery
from opensend_milter.core.errors import QueueUnavailable
from opensend_milter.core.model import Job, Lane, Notice, Parcel
from opensend_milter.core.ports import Courier, JobQueue, JobStore

log = logging.getLogger(__name__)
_LONG_POLL_S = 5.0
"""Also how long a stop may have to wait."""
_LISTED_FOR_S = 1.0
"""How late a lane may be found that others were faster than."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the worker runs."""

    concurrency: int
    poll_interval_s: float
    max_attempts: int
    lease_s: float = 300.0
    drain_s: float = 30.0
    housekeeping_s: float = 10.0
    poll_after_s: float = 60.0
    """A queue unreachable for so long, and the database is polled: no message waits for ever."""


@dataclass(slots=True)
class Turns:
    """Lanes take turns, one message each; for all threads of a process."""

    _lanes: list[Lane] = field(default_factory=list)
    _last: tuple[str, str] = ("", "")
    _listed_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, list_due: Callable[[], list[Lane]]) -> Lane | None:
        """Return the lane after the last one; `list_due` is asked now and then, and whenever none is known."""
        if self._is_stale():
            found = sorted(list_due(), key=_place)
            with self._lock:
                self._lanes = found
        with self._lock:
            if not self._lanes:
                return None
            at = bisect_right(self._lanes, self._last, key=_place)
            lane = self._lanes[at if at < len(self._lanes) else 0]
            self._last = _place(lane)
            return lane

    def is_done(self, lane: Lane) -> None:
        """Nothing in it is due any more."""
        with self._lock:
            if lane in self._lanes:
                self._lanes.remove(lane)

    def _is_stale(self) -> bool:
        now = time.monotonic()
        with self._lock:
            stale = not self._lanes or now - self._listed_at > _LISTED_FOR_S
            if stale:
                self._listed_at = now
            return stale


def _place(lane: Lane) -> tuple[str, str]:
    return lane.user_id, lane.courier or ""


class Inbox:
    """Notices on their way from the queue to the threads that deliver."""

    def __init__(self, jobs: JobQueue, settings: Settings) -> None:
        self._jobs = jobs
        self._notices: queue.Queue[Notice] = queue.Queue(settings.concurrency)
        self._poll_after_s = settings.poll_after_s
        self._reached_at = time.monotonic()
        self._held: dict[str, Notice] = {}

    def fill(self, stop: threading.Event) -> float:
        """Fetch once, and hand all over."""
        for notice in self._jobs.receive(_LONG_POLL_S):
            self._held[notice.receipt] = notice
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
        self.leave(notice)
        try:
            self._jobs.done(notice)
        except QueueUnavailable as error:
            log.debug("email=%s notice comes again: %s", notice.email_id, error)

    def leave(self, notice: Notice) -> None:
        """Let the queue bring it again when its lease ends."""
        self._held.pop(notice.receipt, None)

    def extend(self) -> None:
        """Keep all that is in hand for another lease."""
        if held := list(self._held.values()):
            self._jobs.extend(held)

    def give_back(self) -> None:
        """Leave what nobody has looked at to the next worker."""
        while notice := self.next(0):
            self._give_back(notice)

    def _give_back(self, notice: Notice) -> None:
        self.leave(notice)
        try:
            self._jobs.give_back(notice)
        except QueueUnavailable as error:
            log.debug("email=%s notice comes again later: %s", notice.email_id, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """What the delivering threads of a process share."""

    settings: Settings
    compose: Callable[[Job], Parcel]
    default: CourierName
    inbox: Inbox | None
    breaker: Breaker = field(default_factory=lambda: Breaker(time.monotonic))
    turns: Turns = field(default_factory=Turns)


class Delivering:
    """Takes one job after the other."""

    def __init__(self, store: JobStore, couriers: Mapping[CourierName, Courier], office: Office) -> None:
        self._store = store
        self._couriers = couriers
        self._office = office
        self._notice: Notice | None = None
        self.in_hand: Job | None = None
        self._delivery = Delivery(
            store=store,
            couriers=couriers,
            default=office.default,
            breaker=office.breaker,
            compose=office.compose,
            max_attempts=office.settings.max_attempts,
            jitter=random.random,
            sleep=time.sleep,
        )

    def step(self) -> float:
        """Deliver one message, if one is due; return how long to pause."""
        inbox = self._office.inbox
        polls = inbox is None or inbox.is_cut_off()
        found = self._attempt(self._claim_due()) if inbox is None or polls else self._deliver_noticed(inbox)
        if found:
            return 0.0
        for courier in self._couriers.values():
            courier.rest()
        return self._office.settings.poll_interval_s if polls else 0.0

    def _deliver_noticed(self, inbox: Inbox) -> bool:
        """Take a notice as word that something is due: what is sent is what is next in turn."""
        # Kept where the database is away: otherwise the queue would bring it back only when its lease ends.
        self._notice = notice = self._notice or inbox.next(self._office.settings.poll_interval_s)
        if notice is None:
            return False
        job = self._claim_due()
        if job is None and self._office.breaker.is_open:
            inbox.leave(notice)
        else:
            # Who was locked while somebody noted it as announced has no other word: others may have taken up its own.
            self._attempt(job or self._store.claim(notice.email_id) or self._claim_due(waits=True))
            inbox.done(notice)
        self._notice = None
        return True

    def _claim_due(self, *, waits: bool = False) -> Job | None:
        turns, tried = self._office.turns, set[Lane]()
        while (lane := turns.next(self._store.due_lanes)) and lane not in tried:
            tried.add(lane)
            if self._office.breaker.allows(lane.courier or self._office.default):
                if job := self._store.claim_due(lane, waits=waits):
                    return job
                turns.is_done(lane)
        return None

    def _attempt(self, job: Job | None) -> bool:
        self.in_hand = job
        try:
            if job:
                self._delivery.attempt(job)
        finally:
            self.in_hand = None
        return job is not None

    def abort(self) -> None:
        """Cut what takes too long, from another thread."""
        for courier in self._couriers.values():
            courier.abort()

    def close(self) -> None:
        """Let go of all connections."""
        for courier in self._couriers.values():
            courier.close()
        self._store.close()


@dataclass(slots=True)
class Extending:
    """Keeps the leases of what is in hand: a next hop that takes its time is not a worker that died."""

    store: JobStore
    threads: Sequence[Delivering]
    inbox: Inbox | None
    lease_s: float

    def step(self) -> float:
        """Extend all; return how long to pause."""
        if jobs := [job for thread in self.threads if (job := thread.in_hand)]:
            self.store.extend(jobs)
        if self.inbox:
            self.inbox.extend()
        return self.lease_s / 3
