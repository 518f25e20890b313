"""attempt(job): commit that it begins, send, record what came of it; a message is never handed over twice by itself."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opensend_milter.core import counting, maillog
from opensend_milter.core.backoff import pause_s
from opensend_milter.core.breaker import Breaker
from opensend_milter.core.couriers import COURIERS, CourierName
from opensend_milter.core.errors import (
    DeliveryDeferred,
    DeliveryRefused,
    DeliveryUncertain,
    PermanentError,
    StoreUnavailable,
    TemporaryError,
)
from opensend_milter.core.model import Answers, Job, Parcel, Sent
from opensend_milter.core.next_hop import is_unknown
from opensend_milter.core.ports import Courier, JobStore

log = logging.getLogger(__name__)

_Write = Callable[[], None]
RECORD_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, *[15.0] * 38)
"""Ten minutes: an outcome is worth waiting for, since without it the message is uncertain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One thread's way of sending."""

    store: JobStore
    couriers: Mapping[CourierName, Courier]
    default: CourierName
    """For domains that do not name one."""
    breaker: Breaker
    compose: Callable[[Job], Parcel]
    max_attempts: int
    jitter: Callable[[], float]
    sleep: Callable[[float], object]

    def attempt(self, job: Job) -> None:
        """Send a claimed job once and record the outcome; return whatever happens."""
        try:
            begun = self.store.begin(job)
        except StoreUnavailable:
            # COMMIT may have come through with its answer lost: left alone, a message not sent would turn uncertain.
            self._persist(job, lambda: self.store.give_back(job))
            raise
        if not begun:
            log.warning("%s: email=%s is no longer ours: not sent", job.queue_id, job.email_id)
            return
        self._persist(job, self._send(job, job.route.courier or self.default))

    def _send(self, job: Job, name: CourierName) -> _Write:
        """Send, and return what is to be recorded; the mail log has it even if the database never will."""
        try:
            courier = self.couriers.get(name)
            if courier is None:
                raise DeliveryDeferred(f"courier {name} is not set up here", outage=True)
            with counting.timed_attempt(name):
                sent = courier.send(self.compose(job))
        except DeliveryUncertain as error:
            return self._uncertain(job, name, str(error))
        except PermanentError as error:
            self.breaker.note_answer(name)
            return self._failed(job, name, str(error), _answers(error, name))
        except TemporaryError as error:
            asked_s = self._note(name, error)
            return self._deferred(job, name, str(error), asked_s, answers=_answers(error, name))
        except Exception as error:
            log.exception("%s: email=%s unexpected", job.queue_id, job.email_id)
            return self._deferred(job, name, f"{type(error).__name__}: {error}", answers=Answers(courier=name))
        self.breaker.note_answer(name)
        return self._sent(job, dataclasses.replace(sent, refused=job.refused + sent.refused))

    def _note(self, name: CourierName, error: TemporaryError) -> float | None:
        """Tell the breaker; return how long the next hop asked to be left alone."""
        if not isinstance(error, DeliveryDeferred):
            return None
        if not error.outage:
            self.breaker.note_answer(name)
        elif left_s := self.breaker.note_outage(name, error.retry_after_s):
            log.warning("courier %s is left alone for %.0f s: %s", name, left_s, maillog.quoted(str(error)))
        return error.retry_after_s

    def _sent(self, job: Job, sent: Sent) -> _Write:
        attempts = job.attempts + 1
        if sent.deferred and attempts < self.max_attempts:
            wait_s = pause_s(attempts, self.jitter(), COURIERS[sent.courier].patience)
            maillog.partly(job, sent, wait_s)
            return lambda: self.store.record_partly(job, sent, wait_s)
        given_up = tuple((address, f"given up after {attempts} attempts: {why}") for address, why in sent.deferred)
        whole = dataclasses.replace(sent, refused=sent.refused + given_up, deferred=())
        maillog.sent(job, whole)
        return lambda: self.store.record_sent(job, whole)

    def _uncertain(self, job: Job, name: CourierName, reason: str) -> _Write:
        maillog.uncertain(job, reason, name)
        return lambda: self.store.record_uncertain(job, reason)

    def _failed(self, job: Job, name: CourierName, reason: str, answers: Answers) -> _Write:
        if job.some_have_it:
            rest = tuple({**dict.fromkeys(job.recipients, reason), **dict(answers.refused)}.items())
            return self._sent(job, Sent(courier=name, reply=reason, refused=job.refused + rest, host=answers.host))
        bounced = any(is_unknown(said) for _, said in answers.refused)
        maillog.failed(job, reason, name, status="bounced" if bounced else "failed")
        return lambda: self.store.record_failed(job, reason, answers)

    def _deferred(
        self, job: Job, name: CourierName, reason: str, asked_s: float | None = None, *, answers: Answers
    ) -> _Write:
        attempts = job.attempts + 1
        if attempts >= self.max_attempts:
            return self._failed(job, name, f"given up after {attempts} attempts: {reason}", answers)
        wait_s = pause_s(attempts, self.jitter(), COURIERS[name].patience, asked_s)
        maillog.deferred(job, reason, wait_s, name)
        return lambda: self.store.record_deferred(job, reason, wait_s)

    def _persist(self, job: Job, write: _Write) -> None:
        """Write until it is written, but not for ever: then the lease ends and the job is uncertain."""
        for then_s in (*RECORD_PAUSES_S, None):
            try:
                write()
            except Exception as error:  # whatever it is, the outcome must not be lost for it
                log.warning("%s: email=%s not recorded yet: %s", job.queue_id, job.email_id, error)
                if then_s is None:
                    log.error("%s: email=%s outcome not recorded", job.queue_id, job.email_id, exc_info=error)  # noqa: TRY400
                else:
                    self.sleep(then_s)
            else:
                return


def _answers(error: PermanentError | TemporaryError, name: CourierName) -> Answers:
    found = error.answers if isinstance(error, DeliveryDeferred | DeliveryRefused) else None
    return found or Answers(courier=name)
