"""Aborts a courier from another thread, as a worker does that has to end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opensend_milter.core.ports import Courier


@contextmanager
def aborted_once(await_point: Callable[[], object], courier: Courier) -> Iterator[None]:
    """Abort as soon as that point is reached; `await_point` returns then."""

    def abort() -> None:
        await_point()
        courier.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    try:
        yield
    finally:
        thread.join()
