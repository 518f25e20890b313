"""Two threads of the worker: one listens to a queue of reports, one takes up what was put down."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from opensend_milter.core.feedback import FeedbackBook, FeedbackBox, ReportQueue

_AT_ONCE = 100
_LONG_POLL_S = 5.0
"""Also how long a stop may have to wait."""
_PRUNE_EVERY_S = 600.0


@dataclass(slots=True)
class Listening:
    """Puts down what the queue brings."""

    queue: ReportQueue
    box: FeedbackBox

    def step(self) -> float:
        """Fetch once; a message leaves the queue when its report is committed."""
        heard = self.queue.receive(_LONG_POLL_S)
        self.box.put([one.report for one in heard if one.report])
        self.queue.done(heard)
        return 0.0

    def close(self) -> None:
        """Let go of the database."""
        self.box.close()


@dataclass(slots=True)
class Applying:
    """Takes up what was put down."""

    book: FeedbackBook
    pause_s: float
    _pruned_at: float = field(default=float("-inf"))

    def step(self) -> float:
        """Take up one batch; return how long to pause."""
        applied = self.book.apply(_AT_ONCE)
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            self.book.prune()
            self._pruned_at = time.monotonic()
        return 0.0 if applied == _AT_ONCE else self.pause_s

    def close(self) -> None:
        """Let go of the database."""
        self.book.close()
