"""What answers at the root: a short page for people; programs hear what they hear where there is nothing."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.servers.web.public.page import PAGES, TABS

_VARY = {"Vary": "Accept"}


def routes() -> list[Route]:
    """Return the route of the page."""

    async def front(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", "").lower():
            raise HTTPException(404, headers=_VARY)
        return PAGES.answer(request, "front.html", tabs=TABS, headers=_VARY)

    return [Route("/", front, methods=["GET"])]
