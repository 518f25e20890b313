"""Take messages in: read, ask for facts, judge, store; both front doors share it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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
    Verdict,
)
from opensend_milter.core.policy import OURS, Policy
from opensend_milter.core.ports import IntakeStore
from opensend_milter.core.refs import new_token

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


Lot = Sequence[tuple[Message, Known | Refuse]]
"""One message; or several of one key, which are taken all or not at all."""


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

    def accept(self, lots: Sequence[Lot]) -> list[list[Outcome | None]]:
        """Judge and store a batch of one or many. An id means that COMMIT returned and the message is ours.

        None: it was good, but another of its lot was not. Raise AlreadyStored where one of them was stored by somebody
        else meanwhile, and nothing of the batch.
        """
        questions = [_question(message, known) for lot in lots for message, known in lot if isinstance(known, Known)]
        facts = iter(self.store.facts_for(questions) if questions else [])
        judged = [self._judged_lot(lot, facts) for lot in lots]
        self.store.settle([one for lot in judged for one in lot if one is not None and one.verdict is not OURS])
        return [[None if one is None else _outcome(one) for one in lot] for lot in judged]

    def _judged_lot(self, lot: Lot, facts: Iterator[Facts]) -> list[Settlement | None]:
        judged: list[Settlement] = []
        accepted = 0
        for message, known in lot:
            if isinstance(known, Known):
                judged.append(self._judged(message, known, _after(accepted, next(facts))))
            else:
                judged.append(Settlement(message=message, verdict=_with_token(known)))
            accepted += isinstance(judged[-1].verdict, Accept)
        if len(judged) > 1 and any(isinstance(one.verdict, Refuse) for one in judged):
            return [one if isinstance(one.verdict, Refuse) else None for one in judged]
        return [*judged]

    def _judged(self, message: Message, known: Known, about: Facts) -> Settlement:
        return Settlement(
            message=message,
            verdict=_with_token(self.policy.judge(message, known.reading, known.identity, about)),
            user_id=about.key.user_id if about.key else None,
            suppressed=about.suppressed,
            message_id=known.reading.message_id,
            from_address=known.reading.sender.address,
            subject=known.reading.subject,
        )


def _with_token(verdict: Verdict) -> Verdict:
    """Give a refusal that will be recorded what it is looked up by."""
    if isinstance(verdict, Refuse) and verdict is not OURS:
        return replace(verdict, token=new_token())
    return verdict


def _outcome(settlement: Settlement) -> Outcome:
    return settlement.message.id if isinstance(settlement.verdict, Accept) else settlement.verdict


def _after(accepted: int, about: Facts) -> Facts:
    """Return the facts as they are behind others of the same lot, and so of the same key: they count for its day."""
    if not accepted or about.key is None:
        return about
    scope = replace(about.key.scope, sent_today=about.key.scope.sent_today + accepted)
    return replace(about, key=replace(about.key, scope=scope))


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
    messages: Sequence[Message]
    since: float
    lot: Lot = ()
    """What was read of them before they joined a batch."""
    outcomes: Sequence[Outcome | None] = ()
    taken: bool = False
    withdrawn: bool = False
    given_up: bool = False
    """Its client has been told to come again, whatever the outcome will be."""
    done: threading.Lock = field(default_factory=_held)
    """Released when there is an outcome: one waits for it, and an Event takes half as long again."""

    def note(self, message: Message, outcome: Outcome | None) -> None:
        waited_ms = (time.monotonic() - self.since) * 1000
        match outcome:
            case None:
                pass
            case Refuse():
                maillog.refused(message, outcome, waited_ms)
            case Repeat():
                maillog.repeated(message, outcome.email_id, waited_ms)
            case email_id:
                maillog.accepted(message, email_id, waited_ms)


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
            queue.SimpleQueue() if at_most > 1 else FairQueue(lambda waiting: waiting.messages[0].session.key_id)
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
        """Messages and lots that no batch has taken up yet."""
        return self._queue.qsize()

    def accept(self, message: Message) -> Outcome:
        """Wait for the outcome of one message.

        After `soft_s` a message that no batch has taken up is withdrawn: it is not stored. One that is under way is
        waited for until `hard_s`; beyond that the answer is 451 though it may be stored.
        """
        return self.accept_all([message])[0] or OURS

    def accept_all(self, messages: Sequence[Message]) -> Sequence[Outcome | None]:
        """Wait for the outcome of messages of one key that are taken all or not at all, as for that of one.

        Where some are refused, the others have none.
        """
        waiting = _Waiting(messages, time.monotonic())
        if self._at_most > 1 and sum([message.size for message in messages]) > _READ_TOGETHER_BYTES:
            waiting.lot = self._read(messages)
        with self._lock:
            if self._stopped:
                return [OURS] * len(messages)
            self._queue.put(waiting)
        if not waiting.done.acquire(timeout=self._soft_s):
            with self._lock:
                waiting.withdrawn = not waiting.taken
            if waiting.withdrawn or not waiting.done.acquire(timeout=max(self._hard_s - self._soft_s, 0)):
                waiting.given_up = True
                for message in messages:
                    waiting.note(message, OURS)
                return [OURS] * len(messages)
        return waiting.outcomes or [OURS] * len(messages)

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
        batch, size = [first], len(first.messages)
        deadline = time.monotonic() + (self._window_s if busy or not self._queue.empty() else 0)
        while size < self._at_most:
            try:
                waiting = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
            size += len(waiting.messages)
        return batch, False

    def _decide(self, batch: list[_Waiting]) -> None:
        with self._lock:
            batch = [waiting for waiting in batch if not waiting.withdrawn]
            for waiting in batch:
                waiting.taken = True
        counting.batch(sum([len(waiting.messages) for waiting in batch]))
        lots = [waiting.lot or self._read(waiting.messages) for waiting in batch]
        for waiting, outcomes in zip(batch, self._outcomes(lots), strict=True):
            waiting.outcomes = outcomes
            if not waiting.given_up:
                self._note(waiting)
        # All at the end: those who wait and this thread take turns at the interpreter.
        for waiting in batch:
            waiting.done.release()

    @staticmethod
    def _note(waiting: _Waiting) -> None:
        for message, outcome in zip(waiting.messages, waiting.outcomes, strict=True):
            try:
                waiting.note(message, outcome)
            except Exception:
                # What is stored is stored, and whoever comes next needs this thread.
                log.exception("%s: not noted", message.queue_id)

    def _read(self, messages: Sequence[Message]) -> Lot:
        deadline = time.monotonic() + self._soft_s
        return [(message, self._known(message, deadline)) for message in messages]

    def _known(self, message: Message, deadline: float) -> Known | Refuse:
        if message.sha256 in self._overdue:
            return OURS
        try:
            return self._intake.read(message, Budget.of(message.size, deadline=deadline))
        except OutOfTimeError:
            self._overdue.add(message.sha256)
            maillog.reading_given_up(message, "time")
            return OURS

    def _outcomes(self, lots: Sequence[Lot], *, again: bool = False) -> Sequence[Sequence[Outcome | None]]:
        try:
            return self._intake.accept(lots)
        except AlreadyStored:
            if again:
                return _ours(lots)
            return [self._outcomes([lot], again=True)[0] for lot in lots]
        except TemporaryError as error:
            log.warning("batch of %d not stored: %s", len(lots), error)
            return _ours(lots)
        except Exception:
            if len(lots) == 1:
                log.exception("%s: not stored", lots[0][0][0].queue_id)
                return _ours(lots)
            log.warning("batch of %d not stored, trying one by one", len(lots), exc_info=True)
            return [self._outcomes([lot])[0] for lot in lots]


def _ours(lots: Sequence[Lot]) -> list[list[Refuse]]:
    return [[OURS for _ in lot] for lot in lots]
