"""What answers who follows the address in a refusal over SMTP: the rule, why, what mends it, and From's domain.

Whoever has the address need not be who sent the message: it has been in logs, and in mails about them.
"""

from __future__ import annotations

from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.rates import Allowance
from opensend_milter.core.refs import PATH, Refused, read_token, ref_of
from opensend_milter.core.remedies import remedy_of, sentence
from opensend_milter.servers.pages.shown import typed
from opensend_milter.servers.web.public.page import PAGES, page
from opensend_milter.servers.web.room import Visit

FindRefused = Callable[[str], Refused | None]
"""By its token. Raises StoreUnavailable."""
PER_MINUTE = 60
"""Pages that one client is shown, tokens that are nothing included: the database is asked for each."""
AT_ONCE = 2
"""Of the connections to the database that all requests share: most are for those who have a key."""


def routes(find: FindRefused, allowance: Allowance) -> list[Route]:
    """Return the route of the page."""
    turns = CapacityLimiter(AT_ONCE)

    async def told(request: Request) -> Response:
        visit: Visit = request.state.visit
        if allowance.wait_s(visit.client_address):
            return page(request, 429, "Too many requests", "Please try again in a minute.")
        allowance.note(visit.client_address)
        token = read_token(request.path_params["token"])
        try:
            refused = await to_thread.run_sync(find, token, limiter=turns) if token else None
        except StoreUnavailable:
            return page(request, 503, "Not now", "This cannot be looked up just now. Please try again in a minute.")
        if token is None or refused is None:
            return page(request, 404, "Not found", "There is nothing at this address, or no longer.")
        return PAGES.answer(request, "told.html", {"rows": _rows(refused, ref_of(token))})

    return [Route(PATH + "{token}", told, methods=["GET"])]


def _rows(refused: Refused, ref: str) -> list[tuple[str, Markup]]:
    remedy = remedy_of(refused.rule)
    rows = [
        ("Answer", f"{refused.code} {refused.enhanced}, rule `{refused.rule}`"),
        ("From", refused.from_domain),
        ("Why", remedy and sentence(remedy.cause)),
        ("What mends it", remedy and sentence(remedy.mend)),
        ("To ask about it", f"ref `{ref}`"),
    ]
    return [(name, typed(text)) for name, text in rows if text]
