"""The page of one domain: each DNS record that its mail needs, as it should be and as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.dns_records import Record
from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance

AT_ONCE = 2
"""Name servers may take their time."""


class Domain(Protocol):
    """A domain, and its records as DNS has them now."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def user_id(self) -> str | None: ...

    @property
    def records(self) -> Sequence[Record]: ...


LookUp = Callable[[str], Domain | None]
"""By its id; None: there is none. Raises StoreUnavailable and Unanswered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPage:
    """DNS is asked whenever it is opened."""

    entrance: Entrance
    look_up: LookUp
    turns: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AT_ONCE))

    def routes(self) -> list[Route]:
        """Return the route; to the holder of a key there is none."""
        return [Route("/domains/{id}", self.entrance.open_to_us(self._domain), methods=["GET"])]

    async def _domain(self, request: Request, visitor: Visitor) -> Response:
        asked: str = request.path_params["id"]
        domain = await to_thread.run_sync(self.look_up, asked, limiter=self.turns)
        if domain is None:
            raise HTTPException(404)
        return self.entrance.answer(request, visitor, "domain.html", here="domains", domain=domain)
