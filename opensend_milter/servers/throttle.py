"""The limiter of one process: any thread asks it, and one thread of its own asks the store for all of them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opensend_milter.core.errors import OpensendError, StoreUnavailable
from opensend_milter.core.model import KeyId
from opensend_milter.core.rates import Blocks, Bucket, Decision, Leases, RateLimits

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """One round trip to the store, for all that wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    error: OpensendError | None = None


class Throttle:
    """Decides whether a message or a login may go on. libmilter's threads may call it: they never touch psycopg."""

    def __init__(self, leases: Leases, limits: RateLimits, *, timeout_s: float) -> None:
        """`timeout_s`: how long a caller waits for the store."""
        self.limits = limits
        self._leases = leases
        self._timeout_s = timeout_s
        self._blocks = Blocks(time.monotonic)
        self._lock = threading.Lock()
        self._turn = _Turn()
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="opensend-rates", daemon=True)

    def start(self) -> None:
        """Begin to ask the store."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and let go of the store."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._leases.close()

    def set_limits(self, limits: RateLimits) -> None:
        """Go on with other limits."""
        self.limits = limits
        self._blocks.forget()

    def check(self, client_address: str, key_id: KeyId | None = None, count: int = 1) -> Decision:
        """Take so many messages of every limit, or of none. Raise StoreUnavailable."""
        return self._take(self.limits.of_message(client_address, key_id), count)

    def check_some(self, client_address: str, key_id: KeyId | None, count: int) -> tuple[int, Decision]:
        """Take as many messages, up to `count`, as every limit has; return how many. Raise StoreUnavailable."""
        decision = self.check(client_address, key_id, count)
        while not decision.allowed and count > 1 and decision.remaining:
            count = min(decision.remaining, count - 1)
            decision = self.check(client_address, key_id, count)
        return count if decision.allowed else 0, decision

    def check_at_once(self, client_address: str, key_id: KeyId) -> Decision | None:
        """Decide on one message without waiting; None: `check` must ask the store."""
        return self._blocks.decide(self.limits.of_message(client_address, key_id), 1)

    def failing(self, client_address: str) -> Decision | None:
        """Return the refusal of a client that failed to log in too often, without asking anybody."""
        return self._blocks.refusal(self.limits.of_failure(client_address))

    def note_failure(self, client_address: str) -> None:
        """Count a failed authentication. Raise StoreUnavailable."""
        self._take(self.limits.of_failure(client_address), 1)

    def _take(self, buckets: Iterable[Bucket], count: int) -> Decision:
        deadline = time.monotonic() + self._timeout_s
        while (decision := self._blocks.decide(buckets, count)) is None:
            with self._lock:
                # After the want is noted: this turn, or one before it, brings the answer.
                turn = self._turn
            self._wake.set()
            if self._stopped or not turn.done.wait(max(deadline - time.monotonic(), 0)):
                raise StoreUnavailable("no answer about rate limits")
            if turn.error:
                raise StoreUnavailable(str(turn.error)) from turn.error
        return decision

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                turn, self._turn = self._turn, _Turn()
            self._lease(turn)
            turn.done.set()
        self._turn.error = StoreUnavailable("stopped")
        self._turn.done.set()

    def _lease(self, turn: _Turn) -> None:
        try:
            if asks := self._blocks.asks():
                self._blocks.note(asks, self._leases.lease(asks))
        except OpensendError as error:
            turn.error = error
        except Exception:
            log.exception("rate limits could not be asked for")
            turn.error = StoreUnavailable("a fault of ours")


def fields(decision: Decision) -> Mapping[str, str]:
    """Phrase a decision as header fields (draft-ietf-httpapi-ratelimit-headers-10; RFC 9110, 10.2.3)."""
    if decision.tier is None:
        return {}
    told = {
        "RateLimit-Policy": f'"{decision.tier}";q={decision.limit};w=60',
        "RateLimit": f'"{decision.tier}";r={decision.remaining};t={math.ceil(decision.reset_s)}',
    }
    return told if decision.allowed else told | {"Retry-After": str(max(math.ceil(decision.retry_after_s), 1))}
