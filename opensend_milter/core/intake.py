"""Take messages in: read, ask for facts, judge, store; both front doors share it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opensend_milter.core import maillog
from opensend_milter.core.address import domain_of, normal_domain, unicode_domain
from opensend_milter.core.errors import TemporaryError
from opensend_milter.core.message import read
from opensend_milter.core.model import Message, Outcome, Question, Reading, Refuse, Settlement, Verdict
from opensend_milter.core.policy import OURS, Policy
from opensend_milter.core.ports import IntakeStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intake:
    """Decides on messages and makes them ours."""

    store: IntakeStore
    policy: Policy

    def accept(self, messages: Sequence[Message]) -> list[Outcome]:
        """Judge and store a batch of one or many. An id means that COMMIT returned and the message is ours."""
        verdicts: list[Verdict] = [OURS] * len(messages)
        readings: list[tuple[int, Reading]] = []
        for place, message in enumerate(messages):
            reading = self._read(message)
            if isinstance(reading, Refuse):
                verdicts[place] = reading
            else:
                readings.append((place, reading))
        questions = [_question(messages[place], reading) for place, reading in readings]
        facts = self.store.facts_for(questions) if questions else []
        for (place, reading), known in zip(readings, facts, strict=True):
            verdicts[place] = self.policy.judge(messages[place], reading, known)
        self.store.settle(
            [Settlement(message=m, verdict=v) for m, v in zip(messages, verdicts, strict=True) if v is not OURS]
        )
        return [v if isinstance(v, Refuse) else m.id for m, v in zip(messages, verdicts, strict=True)]

    def _read(self, message: Message) -> Reading | Refuse:
        if refusal := message.fault or self.policy.refuse_size(message.size):
            return refusal
        try:
            return read(message.raw, self.policy.limits)
        except Exception:
            # One message that trips over a fault of ours must not tempfail its neighbours in the batch.
            log.exception("%s: could not be read", message.queue_id)
            return OURS


def _question(message: Message, reading: Reading) -> Question:
    domain = normal_domain(domain_of(reading.sender.address)) or ""
    return Question(
        key_id=message.session.key_id,
        sender_domains=(domain, unicode_domain(domain)),
        recipients=message.envelope.recipients,
    )


@dataclass(eq=False, slots=True)
class _Waiting:
    message: Message
    since: float
    outcome: Outcome | None = None
    taken: bool = False
    withdrawn: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Gatherer:
    """One thread that makes batches of what many sessions hand in, so that they share round trips and a COMMIT."""

    def __init__(
        self, intake: Intake, *, name: str, window_s: float, at_most: int, soft_s: float, hard_s: float
    ) -> None:
        self._intake = intake
        self._soft_s = soft_s
        self._hard_s = hard_s
        self._window_s = window_s
        self._at_most = at_most
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
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
        with self._lock:
            if self._stopped:
                return OURS
            self._queue.put(waiting)
        if not waiting.done.wait(self._soft_s):
            with self._lock:
                waiting.withdrawn = not waiting.taken
            if waiting.withdrawn or not waiting.done.wait(max(self._hard_s - self._soft_s, 0)):
                waiting.outcome = OURS
        outcome = waiting.outcome or OURS
        waited_ms = (time.monotonic() - waiting.since) * 1000
        if isinstance(outcome, Refuse):
            maillog.refused(message, outcome, waited_ms)
        else:
            maillog.accepted(message, outcome, waited_ms)
        return outcome

    def _run(self) -> None:
        busy = False
        while (first := self._queue.get()) is not None:
            batch, ended = self._gather(first, busy=busy)
            self._decide(batch)
            if ended:
                return
            busy = len(batch) > 1

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
        for waiting, outcome in zip(batch, self._outcomes([w.message for w in batch]), strict=True):
            waiting.outcome = outcome
            waiting.done.set()

    def _outcomes(self, messages: list[Message]) -> list[Outcome]:
        try:
            return self._intake.accept(messages)
        except TemporaryError as error:
            log.warning("batch of %d not stored: %s", len(messages), error)
            return [OURS for _ in messages]
        except Exception:
            if len(messages) == 1:
                log.exception("%s: not stored", messages[0].queue_id)
                return [OURS]
            log.warning("batch of %d not stored, trying one by one", len(messages), exc_info=True)
            return [self._outcomes([message])[0] for message in messages]
