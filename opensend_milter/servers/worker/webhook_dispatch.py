"""Calls webhooks: a few at once, so that a slow receiver holds up nobody but itself."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from opensend_milter.core import counting
from opensend_milter.core.errors import RowRefused, StoreUnavailable
from opensend_milter.core.maillog import quoted
from opensend_milter.core.webhook import (
    Answer,
    DeliveryId,
    Fate,
    WebhookDelivery,
    WebhookId,
    body_of,
    fate_of,
    headers_of,
)

log = logging.getLogger(__name__)
AT_ONCE = 4
AT_ONCE_EACH = 2
_NOTICED_S = 0.5
"""How late, at most, what became due while calls are out is begun."""


class Deliveries(Protocol):
    """Where deliveries are claimed and recorded."""

    def secret(self) -> bytes: ...

    def claim(self, at_most: int, full: Sequence[WebhookId]) -> list[WebhookDelivery]: ...

    def record(self, delivery: WebhookDelivery, answer: Answer, fate: Fate) -> bool: ...

    def close(self) -> None: ...


class Messenger(Protocol):
    """Who calls receivers."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How webhooks are called."""

    max_attempts: int
    poll_interval_s: float
    drain_s: float
    """How long a stop waits for the calls that are out."""
    now: Callable[[], datetime]
    jitter: Callable[[], float]


class Dispatching:
    """One thread that claims and records; others only call."""

    def __init__(self, store: Deliveries, messenger: Messenger, habits: Habits) -> None:
        self._store = store
        self._messenger = messenger
        self._habits = habits
        self._signing: bytes | None = None
        self._out: dict[DeliveryId, WebhookId] = {}
        self._calls: queue.SimpleQueue[tuple[WebhookDelivery, bytes] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[WebhookDelivery, Answer]] = queue.SimpleQueue()
        self._unrecorded: deque[tuple[WebhookDelivery, Answer]] = deque()
        # Daemons, because the process must end even where a call never returns.
        self._threads = [
            threading.Thread(target=self._call_all, name=f"opensend-webhook-{number}", daemon=True)
            for number in range(AT_ONCE)
        ]

    def step(self) -> float:
        """Record what came back, begin what is due; return how long to pause."""
        if self._signing is None:
            self._signing = self._store.secret()
            for thread in self._threads:
                thread.start()
        self._take_answers(0.0)
        self._begin(self._signing)
        if not self._out:
            return self._habits.poll_interval_s
        self._take_answers(min(self._habits.poll_interval_s, _NOTICED_S))
        return 0.0

    def close(self) -> None:
        """Wait for the calls that are out, record them, and let go; what is left is tried again."""
        deadline = time.monotonic() + self._habits.drain_s
        try:
            while self._out and (left_s := deadline - time.monotonic()) > 0:
                self._take_answers(left_s)
        except StoreUnavailable as error:
            log.warning("webhooks: %d calls not recorded, they are made again: %s", len(self._out), error)
        for _ in self._threads:
            self._calls.put(None)
        self._store.close()

    def _begin(self, signing: bytes) -> None:
        while free := AT_ONCE - len(self._out):
            full = [webhook_id for webhook_id, count in Counter(self._out.values()).items() if count >= AT_ONCE_EACH]
            claimed = self._store.claim(free, full)
            for delivery in claimed:
                self._out[delivery.id] = delivery.webhook.id
                self._calls.put((delivery, signing))
            if not claimed:
                return

    def _take_answers(self, wait_s: float) -> None:
        """Wait for one answer and record all there are; one that cannot be recorded now is kept."""
        while True:
            try:
                self._unrecorded.append(self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait())
            except queue.Empty:
                break
            wait_s = 0.0
        while self._unrecorded:
            delivery, answer = self._unrecorded[0]
            self._record(delivery, answer)

    def _record(self, delivery: WebhookDelivery, answer: Answer) -> None:
        habits = self._habits
        fate = fate_of(
            answer, delivery.attempt, max_attempts=habits.max_attempts, jitter=habits.jitter(), now=habits.now()
        )
        try:
            recorded = self._store.record(delivery, answer, fate)
        except RowRefused as error:
            # Kept, it would be in the way of all others.
            log.error("webhook=%s event=%s not recorded: %s", delivery.webhook.id, delivery.event.id, error)  # noqa: TRY400
            recorded = False
        self._unrecorded.popleft()
        self._out.pop(delivery.id, None)
        _note(delivery, answer, fate, recorded=recorded)

    def _call_all(self) -> None:
        while call := self._calls.get():
            delivery, signing = call
            try:
                answer = self._call(delivery, signing)
            except Exception as error:
                log.exception("webhook=%s delivery=%s unexpected", delivery.webhook.id, delivery.id)
                answer = Answer(code=None, text=type(error).__name__)
            self._answers.put((delivery, answer))

    def _call(self, delivery: WebhookDelivery, signing: bytes) -> Answer:
        body = body_of(delivery.event)
        headers = headers_of(delivery.webhook, delivery.event.id, body, signing=signing, now=self._habits.now())
        return self._messenger.post(delivery.webhook.url, headers, body)


def _note(delivery: WebhookDelivery, answer: Answer, fate: Fate, *, recorded: bool) -> None:
    """Log without the receiver's words, and without its URL: either may hold what is nobody's business."""
    counting.webhook(fate.status if recorded else "superseded")
    level = logging.INFO if fate.status == "success" else logging.WARNING
    log.log(
        level,
        "webhook=%s event=%s type=%s attempt=%d status=%s code=%s%s%s",
        delivery.webhook.id,
        delivery.event.id,
        delivery.event.type,
        delivery.attempt,
        fate.status if recorded else "superseded",
        answer.code or "none",
        "" if fate.pause_s is None else f" wait_s={fate.pause_s:.0f}",
        f" reason={quoted(answer.text)}" if answer.code is None else "",
    )
