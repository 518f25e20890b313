"""Pages that keep themselves up to date: places for so many, apart from those of requests, and what each is told."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio import sleep
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.servers.pages.answering import HEADERS

MOST_LIVE, MOST_OF_ONE = 200, 20
"""In all, and of one session."""
EVERY_S = 5.0
ROUNDS = 6
"""Then the browser asks anew: so a process that is to end waits for nobody for long."""
_AGAIN_MS = 1_000
Told = Callable[[], Awaitable[str | None]]
"""What a page is told now, as HTML; None: whoever looks may do so no more."""


@dataclass(slots=True)
class Places:
    """Who looks at live pages, by session."""

    _held: Counter[str] = field(default_factory=Counter)

    def is_free(self, session: str) -> bool:
        """Tell whether there is one more for this session."""
        return self._held[session] < MOST_OF_ONE and self._held.total() < MOST_LIVE

    @contextmanager
    def held(self, session: str) -> Iterator[None]:
        """Hold one."""
        self._held[session] += 1
        try:
            yield
        finally:
            self._held[session] -= 1
            if not self._held[session]:
                del self._held[session]


def live(request: Request, places: Places, session: str, part: str, told: Told) -> Response:
    """Answer with a stream of events for one part of a page; where there is no place, with nothing: it asks no more."""
    if not places.is_free(session):
        return Response(status_code=204, headers=HEADERS)
    # A live page takes no place of a request's.
    request.state.visit.leave()
    return StreamingResponse(_events(places, session, part, told), 200, HEADERS, "text/event-stream")


async def _events(places: Places, session: str, part: str, told: Told) -> AsyncIterator[str]:
    if not places.is_free(session):  # others came in the same moment
        return
    with places.held(session):
        yield f"retry: {_AGAIN_MS}\n\n"
        told_last = ""
        for _ in range(ROUNDS):
            try:
                text = await told()
            except StoreUnavailable:
                return
            if text is None:
                return
            if text != told_last:
                lines = "".join(f"data: {line}\n" for line in text.splitlines())
                yield f"event: {part}\n{lines}\n"
            told_last = text
            # All in one moment: what they share is asked for once.
            await sleep(EVERY_S - time.monotonic() % EVERY_S)
