"""Take messages in: read, ask for facts, judge, store; both front doors share it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opensend_milter.core import counting, maillog
from opensend_milter.core.address import domain_of, normal_domain, unicode_domain
from opensend_milter.core.budget import Budget, OutOfTimeError
from opensend_milter.core.errors import AlreadyStored, TemporaryError
from opensend_milter.core.fair_queue import FairQueue
from opensend_milter.core.identity import identify
from opensend_milter.core.message import read
from opensend_milter.core.model import (
    Accept,
    Facts,
    Identity,
    Message,
    Outcome,
    Question,
    Reading,
    Refuse,
    Repeat,
    Settlement,
)
from opensend_milter.core.policy import OURS, Policy
from opensend_milter.core.ports import IntakeStore

log = logging.getLogger(__name__)

_READ_TOGETHER_BYTES = 16_384
"""What a batch may wait for: up to here the most hostile message is read in milliseconds."""
_OVERDUE_S = 60
_MOST_OVERDUE = 1_000


@dataclass(frozen=True, slots=True)
class Known:
    """A message that has been read."""

    reading: Reading
    identity: Identity


@dataclass(frozen=True, slots=True)
class Intake:
    """Decides on messages and makes them ours."""

    store: IntakeStore
    policy: Policy

    def read(self, message: Message, budget: Budget) -> Known | Refuse:
        """Read a message, or say why it is not taken.

        Raise OutOfTimeError when the time is over that the budget has.
        """
        if refusal := message.fault or self.policy.refuse_size(message.size):
            return refusal
        try:
            reading = read(message.raw, self.policy.limits, budget)
            if budget.exhausted_in:
                maillog.reading_given_up(message, budget.exhausted_in)
            return reading if isinstance(reading, Refuse) else Known(reading, identify(message, reading))
        except OutOfTimeError:
            raise
        except Exception:
            # One message that trips over a fault of ours must not tempfail its neighbours in the batch.
            log.exception("%s: could not be read", message.queue_id)
            return OURS

    def accept(self, messages: Sequence[tuple[Message, Known | Refuse]]) -> list[Outcome]:
        """Judge and store a batch of one or many. An id means that COMMIT returned and the message is ours.

        Raise AlreadyStored where one of them was stored by somebody else meanwhile, and nothing of the batch.
        """
        questions = [_question(message, known) for message, known in messages if isinstance(known, Known)]
        facts = iter(self.store.facts_for(questions) if questions else [])
        settlements = [
            self._judged(message, known, next(facts))
            if isinstance(known, Known)
            else Settlement(message=message, verdict=known)
            for message, known in messages
        ]
        self.store.settle([settlement for settlement in settlements if settlement.verdict is not OURS])
        return [one.message.id if isinstance(one.verdict, Accept) else one.verdict for one in settlements]

    def _judged(self, message: Message, known: Known, about: Facts) -> Settlement:
        return Settlement(
            message=message,
            verdict=self.policy.judge(message, known.reading, known.identity, about),
            user_id=about.key.user_id if about.key else None,
            suppressed=about.suppressed,
            message_id=known.reading.message_id,
        )


def _question(message: Message, known: Known) -> Question:
    domain = normal_domain(domain_of(known.reading.sender.address)) or ""
    return Question(
        key_id=message.session.key_id,
        sender_domains=(domain, unicode_domain(domain)),
        recipients=message.envelope.recipients,
        identity=known.identity,
    )


class _Overdue:
    """Messages that took too long to read a moment ago: to begin again at once would take others' time as well."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def add(self, digest: bytes) -> None:
        if len(self._until) >= _MOST_OVERDUE:
            self._until.clear()
        self._until[digest] = time.monotonic() + _OVERDUE_S

    def __contains__(self, digest: bytes) -> bool:
        return self._until.get(digest, 0) > time.monotonic()


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False, slots=True)
class _Waiting:
    message: Message
    since: float
    known: Known | Refuse | None = None
    outcome: Outcome | None = None
    taken: bool = False
    withdrawn: bool = False
    given_up: bool = False
    """Its client has been told to come again, whatever the outcome will be."""
    done: threading.Lock = field(default_factory=_held)
    """Released when there is an outcome: one waits for it, and an Event takes half as long again."""

    def note(self, outcome: Outcome) -> None:
        waited_ms = (time.monotonic() - self.since) * 1000
        match outcome:
            case Refuse():
                maillog.refused(self.message, outcome, waited_ms)
            case Repeat():
                maillog.repeated(self.message, outcome.email_id, waited_ms)
            case email_id:
                maillog.accepted(self.message, email_id, waited_ms)


class Gatherer:
    """One thread that makes batches of what many sessions hand in, so that they share round trips and a COMMIT.

    It reads them, too; but one that might take long to read is read by its own session before it joins a batch. Where
    messages are decided one at a time, keys take turns: who sends many makes the others wait for one of his.
    """

    def __init__(
        self, intake: Intake, *, name: str, window_s: float, at_most: int, soft_s: float, hard_s: float
    ) -> None:
        self._intake = intake
        self._soft_s = soft_s
        self._hard_s = hard_s
        self._window_s = window_s
        self._at_most = at_most
        self._overdue = _Overdue()
        self._queue: queue.SimpleQueue[_Waiting | None] | FairQueue[_Waiting] = (
            queue.SimpleQueue() if at_most > 1 else FairQueue(lambda waiting: waiting.message.session.key_id)
        )
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to take messages."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was handed in, then end the thread."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Messages that no batch has taken up yet."""
        return self._queue.qsize()

    def accept(self, message: Message) -> Outcome:
        """Wait for the outcome of one message.

        After `soft_s` a message that no batch has taken up is withdrawn: it is not stored. One that is under way is
        waited for until `hard_s`; beyond that the answer is 451 though it may be stored.
        """
        waiting = _Waiting(message, time.monotonic())
        if self._at_most > 1 and message.size > _READ_TOGETHER_BYTES:
            waiting.known = self._read(message)
        with self._lock:
            if self._stopped:
                return OURS
            self._queue.put(waiting)
        if not waiting.done.acquire(timeout=self._soft_s):
            with self._lock:
                waiting.withdrawn = not waiting.taken
            if waiting.withdrawn or not waiting.done.acquire(timeout=max(self._hard_s - self._soft_s, 0)):
                waiting.given_up = True
                waiting.note(OURS)
                return OURS
        return waiting.outcome or OURS

    def _run(self) -> None:
        size = 1
        while size:
            size = self._decide_next(busy=size > 1)

    def _decide_next(self, *, busy: bool) -> int:
        """Decide on the next batch and return its size, 0 at the end; nothing of it stays in memory, or on disk."""
        first = self._queue.get()
        if first is None:
            return 0
        batch, ended = self._gather(first, busy=busy)
        self._decide(batch)
        return 0 if ended else len(batch)

    def _gather(self, first: _Waiting, *, busy: bool) -> tuple[list[_Waiting], bool]:
        """Fill a batch; wait for more only when there lately was more than one, so that a lone session never waits."""
        batch = [first]
        deadline = time.monotonic() + (self._window_s if busy or not self._queue.empty() else 0)
        while len(batch) < self._at_most:
            try:
                waiting = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
        return batch, False

    def _decide(self, batch: list[_Waiting]) -> None:
        with self._lock:
            batch = [waiting for waiting in batch if not waiting.withdrawn]
            for waiting in batch:
                waiting.taken = True
        counting.batch(len(batch))
        asked = [(waiting.message, waiting.known or self._read(waiting.message)) for waiting in batch]
        for waiting, outcome in zip(batch, self._outcomes(asked), strict=True):
            waiting.outcome = outcome
            if not waiting.given_up:
                self._note(waiting, outcome)
        # All at the end: those who wait and this thread take turns at the interpreter.
        for waiting in batch:
            waiting.done.release()

    @staticmethod
    def _note(waiting: _Waiting, outcome: Outcome) -> None:
        try:
            waiting.note(outcome)
        except Exception:
            # What is stored is stored, and whoever comes next needs this thread.
            log.exception("%s: not noted", waiting.message.queue_id)

    def _read(self, message: Message) -> Known | Refuse:
        if message.sha256 in self._overdue:
            return OURS
        try:
            return self._intake.read(message, Budget.of(message.size, deadline=time.monotonic() + self._soft_s))
        except OutOfTimeError:
            self._overdue.add(message.sha256)
            maillog.reading_given_up(message, "time")
            return OURS

    def _outcomes(self, messages: list[tuple[Message, Known | Refuse]], *, again: bool = False) -> list[Outcome]:
        try:
            return self._intake.accept(messages)
        except AlreadyStored:
            if again:
                return [OURS for _ in messages]
            return [self._outcomes([message], again=True)[0] for message in messages]
        except TemporaryError as error:
            log.warning("batch of %d not stored: %s", len(messages), error)
            return [OURS for _ in messages]
        except Exception:
            if len(messages) == 1:
                log.exception("%s: not stored", messages[0][0].queue_id)
                return [OURS]
            log.warning("batch of %d not stored, trying one by one", len(messages), exc_info=True)
            return [self._outcomes([message])[0] for message in messages]
