"""Aborts a courier from another thread, as a worker does that has to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opensend_milter.core.ports import Courier


@contextmanager
def aborted_once(reached: threading.Event, courier: Courier) -> Iterator[None]:
    """Abort as soon as that point is reached."""

    def abort() -> None:
        if reached.wait(20):
            courier.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    try:
        yield
    finally:
        thread.join()
