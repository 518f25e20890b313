"""Emails as Resend's clients read them, take them back and put them off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core import maillog
from opensend_milter.core.letter import Letter
from opensend_milter.core.model import EmailId
from opensend_milter.core.policy import LONGEST_DELAY, may_wait_until
from opensend_milter.core.request import read_time
from opensend_milter.core.submission import Caller, email_of_request
from opensend_milter.servers.web.bodies import json_of, told
from opensend_milter.servers.web.queries import bad, limit_of, only, shown
from opensend_milter.servers.web.refusals import Refused
from opensend_milter.servers.web.room import LARGE_BYTES, Visit

T = TypeVar("T")
Authenticated = Callable[[Request], Awaitable[Caller]]
MOST_BYTES = 4_096
"""Of a body that says nothing but a time."""
_CANCELED = {"canceled", "cancelled"}


class LetterStore(Protocol):
    """Emails, to the holder of a key. Raises StoreUnavailable."""

    def letters(self, caller: Caller, ids: Sequence[EmailId], *, whole: bool) -> list[Letter]: ...

    def older(self, caller: Caller, than: EmailId | None, limit: int) -> list[EmailId] | None: ...

    def newer(self, caller: Caller, than: EmailId, limit: int) -> list[EmailId] | None: ...

    def now(self) -> datetime: ...

    def cancel(self, caller: Caller, email_id: EmailId) -> str | None: ...

    def reschedule(self, caller: Caller, email_id: EmailId, moment: datetime) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """Answers for one process."""

    store: LetterStore
    threads: CapacityLimiter

    def routes(self, authenticated: Authenticated) -> list[Route]:
        """Return the routes of one email; what the key may not read is not there."""

        async def one(request: Request) -> Response:
            caller = await authenticated(request)
            email_id = _email_of(request)
            return await (self._put_off if request.method == "PATCH" else self._shown)(request, caller, email_id)

        async def cancel(request: Request) -> Response:
            caller = await authenticated(request)
            email_id = _email_of(request)
            _refuse_sending_key(caller)
            status = await self._in_thread(lambda: self.store.cancel(caller, email_id))
            if status not in _CANCELED:
                raise _not_scheduled(status, "canceled")
            maillog.rescheduled(request.state.request_id, email_id, caller.key_id, None)
            return _done(email_id)

        return [
            Route("/emails/{id}", one, methods=["GET", "PATCH"]),
            Route("/emails/{id}/cancel", cancel, methods=["POST"]),
        ]

    async def listed(self, request: Request, caller: Caller) -> Response:
        """List what the key may read: of `after` what is older, of `before` what is newer, latest first either way."""
        only(request, "limit", "after", "before")
        query = request.query_params
        limit, after, before = limit_of(query.get("limit")), _cursor(request, "after"), _cursor(request, "before")
        if after and before:
            raise bad("before", "expected after or before, not both")
        ids = await self._in_thread(
            lambda: (
                self.store.newer(caller, before, limit + 1) if before else self.store.older(caller, after, limit + 1)
            )
        )
        if ids is None:
            raise _not_there()
        found = await self._in_thread(lambda: self.store.letters(caller, ids[:limit], whole=False))
        return JSONResponse(
            {"object": "list", "has_more": len(ids) > limit, "data": [_in_a_list(one) for one in found]}
        )

    async def _shown(self, request: Request, caller: Caller, email_id: EmailId) -> Response:
        found = await self._in_thread(lambda: self.store.letters(caller, [email_id], whole=False))
        if not found:
            raise _not_there()
        visit: Visit = request.state.visit
        if found[0].octets <= LARGE_BYTES:
            return await self._in_thread(lambda: self._whole(caller, email_id))
        # What is as large as what is taken needs as much room, and its turn.
        await visit.expect(found[0].octets)
        async with visit.reading():
            return await self._in_thread(lambda: self._whole(caller, email_id))

    def _whole(self, caller: Caller, email_id: EmailId) -> Response:
        for found in self.store.letters(caller, [email_id], whole=True):
            return JSONResponse(
                {
                    "object": "email",
                    **_in_a_list(found),
                    "html": found.html,
                    "text": found.text,
                    "tags": [dict(tag) for tag in found.tags],
                    "sent_at": shown(found.sent_at),
                    "recipients": [
                        {"email": one.email, "status": one.status, "reason": one.reason} for one in found.standing.fates
                    ],
                }
            )
        raise _not_there()

    async def _put_off(self, request: Request, caller: Caller, email_id: EmailId) -> Response:
        _refuse_sending_key(caller)
        asked = read_time(json_of(await _small_body(request)), request.path_params["id"])
        if isinstance(asked, list):
            raise Refused(400, "validation_failed", asked[0].message, errors=[told(error) for error in asked])
        now = await self._in_thread(self.store.now)
        moment = now + asked if isinstance(asked, timedelta) else asked
        if not may_wait_until(moment, now):
            when = moment.isoformat(timespec="seconds")
            raise bad("scheduled_at", f"{when} is not within the next {LONGEST_DELAY.days} days")
        status = await self._in_thread(lambda: self.store.reschedule(caller, email_id, moment))
        if status != "scheduled":
            raise _not_scheduled(status, "sent at another time")
        maillog.rescheduled(request.state.request_id, email_id, caller.key_id, moment)
        return _done(email_id)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self.threads)


def _in_a_list(found: Letter) -> dict[str, object]:
    return {
        "id": found.standing.email_id,
        "message_id": found.standing.message_id,
        "to": list(found.to),
        "from": found.sender,
        "created_at": shown(found.standing.created_at),
        "subject": found.subject,
        "bcc": list(found.bcc),
        "cc": list(found.cc),
        "reply_to": list(found.reply_to),
        "last_event": found.last_event,
        "scheduled_at": shown(found.standing.scheduled_at),
        "topic_id": found.topic_id,
    }


def _done(email_id: EmailId) -> Response:
    return JSONResponse({"object": "email", "id": email_id})


async def _small_body(request: Request) -> bytearray:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", "expected Content-Type: application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            text = f"more than {MOST_BYTES} octets, for a time"
            raise Refused(413, "payload_too_large", text, headers={"Connection": "close"})
    return body


def _email_of(request: Request) -> EmailId:
    email_id = email_of_request(request.path_params["id"])
    if email_id is None:
        raise _not_there()
    return email_id


def _cursor(request: Request, name: str) -> EmailId | None:
    text = request.query_params.get(name)
    email_id = email_of_request(text) if text is not None else None
    if text is not None and email_id is None:
        raise bad(name, "expected the id of an email")
    return email_id


def _refuse_sending_key(caller: Caller) -> None:
    if not caller.has_full_access:
        raise Refused(403, "forbidden", "this API key may send, and do nothing else with emails: it needs full_access")


def _not_scheduled(status: str | None, what: str) -> Refused:
    if status is None:
        return _not_there()
    return Refused(400, "not_scheduled", f"it is {status}: only what is scheduled can be {what}")


def _not_there() -> Refused:
    return Refused(404, "not_found", "there is no such email that this key may read")
