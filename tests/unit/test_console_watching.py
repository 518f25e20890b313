"""Of all live pages that one session has open, one asks whether it still lasts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

from anyio import create_task_group, run
from starlette.requests import Request

from opensend_milter.config import Console
from opensend_milter.core.passwords import Verifier
from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.site import PAGES

PAGES_OF_EACH = 20


@dataclass
class Sessions:
    """Those that last, and how often was asked for each."""

    lasting: set[str]
    asked: Counter[str] = field(default_factory=Counter)

    def visitor(self, token: str) -> Visitor | None:
        self.asked[token] += 1
        return Visitor(name=token) if token in self.lasting else None

    def verifier(self, name: str) -> Verifier | None: ...

    def key_of(self, secret: str) -> Visitor | None: ...

    def begin(self, token: str, visitor: Visitor, client_address: str) -> None: ...

    def end(self, token: str) -> None: ...


def test_a_session_is_asked_for_once_for_all_that_it_shows() -> None:
    sessions = Sessions({"ann"})
    entrance = Entrance(settings=Console(), store=sessions, pages=PAGES, failed_per_minute=9)
    watching = [(name, entrance.watching(page_of(name))) for name in ("ann", "bob") * PAGES_OF_EACH]
    told: list[tuple[str, bool]] = []

    async def all_at_once() -> None:
        async def one(name: str, number: int) -> None:
            told.append((name, await watching[number][1]() is not None))

        async with create_task_group() as group:
            for number, (name, _) in enumerate(watching):
                group.start_soon(one, name, number)

    run(all_at_once)
    assert Counter(told) == {("ann", True): PAGES_OF_EACH, ("bob", False): PAGES_OF_EACH}
    assert sessions.asked == {"ann": 1, "bob": 1}


def page_of(token: str) -> Request:
    headers = [(b"cookie", f"console={token}".encode())]
    state = {"visit": SimpleNamespace(client_address="127.0.0.1")}
    return Request(
        {"type": "http", "headers": headers, "client": ("127.0.0.1", 1), "path": "/now/live", "state": state}
    )
