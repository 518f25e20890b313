"""What answers when somebody opens a message, follows one of its links, or unsubscribes.

An open or a click is answered first and reported afterwards: nobody's click fails or waits because of us.
An unsubscription is answered 200 when its report is stored.
"""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.links import PATHS, LinkKind, SignedLink, location
from opensend_milter.core.model import EmailId
from opensend_milter.servers.web.public.page import HEADERS, page
from opensend_milter.servers.web.room import Visit

log = logging.getLogger(__name__)

MOST_UNREPORTED = 1_000
"""Opens and clicks that wait for the database; more are not counted."""
_USER_AGENT_CHARACTERS = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PIXEL = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")


class PutReport(Protocol):
    """Stores what was heard of a message. Raises StoreUnavailable; what comes again under a source id counts once."""

    def __call__(self, kind: str, source_id: str, email_id: EmailId, payload: Mapping[str, str], /) -> object: ...


def routes(
    open_link: Callable[[str], SignedLink | None],
    put_report: PutReport,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Route]:
    """Return the routes that serve the links of messages."""
    answers = _Answers(open_link=open_link, reports=_Reports(put_report), clock=clock)
    return [
        Route(PATHS["open"] + "{token}", answers.opened, methods=["GET"]),
        Route(PATHS["click"] + "{token}", answers.clicked, methods=["GET"]),
        Route(PATHS["unsubscribe"] + "{token}", answers.unsubscribe, methods=["GET", "POST"]),
    ]


@dataclass(frozen=True, slots=True)
class _Report:
    kind: LinkKind
    source_id: str
    email_id: EmailId
    payload: Mapping[str, str]


@dataclass(slots=True)
class _Reports:
    """Reports on their way to the store."""

    put: PutReport
    waiting: int = field(default=0, init=False)
    failing: bool = field(default=False, init=False)

    async def store(self, report: _Report) -> bool:
        """Tell whether it is stored; a failure is logged once until it works again."""
        try:
            await run_in_threadpool(self.put, report.kind, report.source_id, report.email_id, report.payload)
        except StoreUnavailable as error:
            self._note_failure(str(error))
            return False
        except Exception:
            log.exception("email=%s %s not recorded", report.email_id, report.kind)
            return False
        self.failing = False
        return True

    async def store_later(self, report: _Report) -> None:
        if self.waiting >= MOST_UNREPORTED:
            self._note_failure(f"{MOST_UNREPORTED} are waiting for the database")
            return
        self.waiting += 1
        try:
            await self.store(report)
        finally:
            self.waiting -= 1

    def _note_failure(self, why: str) -> None:
        if not self.failing:
            log.warning("opens, clicks and unsubscriptions are not recorded: %s", why)
        self.failing = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    open_link: Callable[[str], SignedLink | None]
    reports: _Reports
    clock: Callable[[], datetime]

    async def opened(self, request: Request) -> Response:
        """Show the pixel, whatever the token is."""
        link = self._link(request, "open")
        return Response(_PIXEL, 200, HEADERS, "image/gif", self._later(request, link) if link else None)

    async def clicked(self, request: Request) -> Response:
        link = self._link(request, "click")
        if link is None:
            return _unknown(request)
        headers = HEADERS | {"Location": location(link.target)}
        return Response(None, 302, headers, background=self._later(request, link))

    async def unsubscribe(self, request: Request) -> Response:
        """Unsubscribe on POST only: scanners follow the links of a message."""
        link = self._link(request, "unsubscribe")
        if link is None:
            return _unknown(request)
        if request.method != "POST":
            return page(request, 200, "Unsubscribe", "Stop these messages?", button="Unsubscribe")
        if not await self.reports.store(self._report(request, link)):
            return page(request, 503, "Not done", "This does not work just now. Please try again in a minute.")
        return page(request, 200, "Unsubscribed", "You will get no more of these messages.")

    def _link(self, request: Request, kind: LinkKind) -> SignedLink | None:
        link = self.open_link(request.path_params["token"])
        return link if link and link.kind == kind else None

    def _later(self, request: Request, link: SignedLink) -> BackgroundTask | None:
        if request.method == "HEAD":
            return None
        return BackgroundTask(self.reports.store_later, self._report(request, link))

    def _report(self, request: Request, link: SignedLink) -> _Report:
        """Name the report so that what one client does twice within a minute counts once."""
        now = self.clock()
        visit: Visit = request.state.visit
        client = visit.client_address
        payload = {
            "timestamp": now.isoformat(timespec="milliseconds"),
            "ipAddress": client,
            "userAgent": _CONTROL.sub(" ", request.headers.get("user-agent", ""))[:_USER_AGENT_CHARACTERS],
        }
        match link.kind:
            case "open":
                pass
            case "click":
                payload["link"] = link.target
            case "unsubscribe":
                payload["recipient"] = link.target
        minute = now.strftime("%Y-%m-%dT%H:%M")
        named = f"{link.kind}\n{link.email_id}\n{link.target}\n{client}\n{minute}"
        source_id = f"{link.kind}:{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        return _Report(link.kind, source_id, link.email_id, payload)


def _unknown(request: Request) -> Response:
    return page(request, 404, "Not found", "This link is not valid. It may have been cut off.")
