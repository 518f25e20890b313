"""attempt(job): commit that it begins, send, record what came of it; a message is never handed over twice by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from opensend_milter.core import maillog
from opensend_milter.core.backoff import next_attempt_at
from opensend_milter.core.errors import DeliveryUncertain, PermanentError, StoreUnavailable, TemporaryError
from opensend_milter.core.model import Job, Parcel
from opensend_milter.core.ports import Courier, JobStore

log = logging.getLogger(__name__)

_Write = Callable[[], None]
RECORD_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, *[15.0] * 38)
"""Ten minutes: an outcome is worth waiting for, since without it the message is uncertain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One thread's way of sending."""

    store: JobStore
    courier: Courier
    compose: Callable[[Job], Parcel]
    max_attempts: int
    clock: Callable[[], datetime]
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
        self._persist(job, self._send(job))

    def _send(self, job: Job) -> _Write:
        """Send, and return what is to be recorded; the mail log has it even if the database never will."""
        try:
            sent = self.courier.send(self.compose(job))
        except DeliveryUncertain as error:
            return self._uncertain(job, str(error))
        except PermanentError as error:
            return self._failed(job, str(error))
        except TemporaryError as error:
            return self._deferred(job, str(error))
        except Exception as error:
            log.exception("%s: email=%s unexpected", job.queue_id, job.email_id)
            return self._deferred(job, f"{type(error).__name__}: {error}")
        maillog.sent(job, sent)
        return lambda: self.store.record_sent(job, sent)

    def _uncertain(self, job: Job, reason: str) -> _Write:
        maillog.uncertain(job, reason)
        return lambda: self.store.record_uncertain(job, reason)

    def _failed(self, job: Job, reason: str) -> _Write:
        maillog.failed(job, reason)
        return lambda: self.store.record_failed(job, reason)

    def _deferred(self, job: Job, reason: str) -> _Write:
        attempts = job.attempts + 1
        if attempts >= self.max_attempts:
            return self._failed(job, f"given up after {attempts} attempts: {reason}")
        at = next_attempt_at(attempts, self.clock(), self.jitter())
        maillog.deferred(job, reason, at)
        return lambda: self.store.record_deferred(job, reason, at)

    def _persist(self, job: Job, write: _Write) -> None:
        """Write until it is written, but not for ever: then the lease ends and the job is uncertain."""
        for pause_s in (*RECORD_PAUSES_S, None):
            try:
                write()
            except Exception as error:  # whatever it is, the outcome must not be lost for it
                log.warning("%s: email=%s not recorded yet: %s", job.queue_id, job.email_id, error)
                if pause_s is None:
                    log.error("%s: email=%s outcome not recorded", job.queue_id, job.email_id, exc_info=error)  # noqa: TRY400
                else:
                    self.sleep(pause_s)
            else:
                return
