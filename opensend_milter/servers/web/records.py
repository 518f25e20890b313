"""What became of a key's own messages, over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.model import EmailId, KeyId, Refuse
from opensend_milter.core.request import Dialect
from opensend_milter.core.rules import Rule
from opensend_milter.core.submission import (
    Page,
    Rejection,
    Submission,
    Wanted,
    domains_of,
    email_of_request,
    reply_codes,
    request_id,
)
from opensend_milter.servers.web.queries import bad, limit_of, moment_of, only, shown
from opensend_milter.servers.web.refusals import Refused

T = TypeVar("T")
Authenticated = Callable[[Request], Awaitable[KeyId]]
_STATES: dict[str, tuple[tuple[str, ...], bool | None]] = {
    "received": (("queued", "scheduled"), False),
    "smtp_submission_started": (("queued", "scheduled", "processing"), True),
    "smtp_accepted": (("sent", "delivered", "bounced", "complained"), None),
    "smtp_failed": (("failed",), None),
    "rejected": (("suppressed",), None),
    "canceled": (("canceled", "cancelled"), None),
}
"""Of which emails one shows a state: their statuses, and whether anything was tried."""
_UNAVAILABLE = 503
_RESENDS = {
    Rule.NOT_A_KEY: "invalid_api_key",
    Rule.KEY_REVOKED: "invalid_api_key",
    Rule.KEY_EXPIRED: "invalid_api_key",
    Rule.DAILY_QUOTA: "daily_quota_exceeded",
}
"""What Resend calls a refusal, where it has several names for one status."""
_SEND_AT = "X-OpenSend-Send-At"
"""What the moment is called over SMTP: the one control field that is judged only once it is written."""


class RecordStore(Protocol):
    """What became of messages. Raises StoreUnavailable."""

    def submissions(self, key_id: KeyId, ids: Sequence[EmailId]) -> list[Submission]: ...

    def page(self, key_id: KeyId, wanted: Wanted) -> Page | None: ...

    def rejection(self, key_id: KeyId, email_id: EmailId) -> Rejection | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Answers for one process."""

    store: RecordStore
    threads: CapacityLimiter

    def routes(self, authenticated: Authenticated) -> list[Route]:
        """Return the routes; what is not the key's own is not there."""

        async def one(request: Request) -> Response:
            key_id = await authenticated(request)
            return JSONResponse(await self._one(key_id, request.path_params["id"]))

        async def some(request: Request) -> Response:
            key_id = await authenticated(request)
            return JSONResponse(await self._some(key_id, request))

        return [
            Route("/v1/submissions", some, methods=["GET"]),
            Route("/v1/submissions/{id}", one, methods=["GET"]),
        ]

    async def _one(self, key_id: KeyId, asked: str) -> dict[str, object]:
        email_id = email_of_request(asked)
        if email_id is None:
            raise _not_there()
        if found := await self._in_thread(lambda: self.store.submissions(key_id, [email_id])):
            return record(found[0])
        rejection = await self._in_thread(lambda: self.store.rejection(key_id, email_id))
        if rejection is None:
            raise _not_there()
        return _rejected(rejection)

    async def _some(self, key_id: KeyId, request: Request) -> dict[str, object]:
        only(request, "status", "since", "bulk", "before", "limit")
        query = request.query_params
        status, before = query.get("status"), query.get("before")
        if status is not None and status not in _STATES:
            raise bad("status", f"expected one of {', '.join(_STATES)}")
        before_id = email_of_request(before) if before is not None else None
        if before is not None and before_id is None:
            raise bad("before", "expected a request_id")
        statuses, tried = _STATES[status] if status else (None, None)
        bulk_id = _bulk(query.get("bulk"))
        wanted = Wanted(
            statuses=statuses,
            tried=tried,
            # Of what was not taken nobody knows which bulk it came with.
            rejected=status in {None, "rejected"} and bulk_id is None,
            since=moment_of(query.get("since")),
            bulk_id=bulk_id,
            before=before_id,
            limit=limit_of(query.get("limit")),
        )
        page = await self._in_thread(lambda: self.store.page(key_id, wanted))
        if page is None:
            raise _not_there()
        found = [record(one) if isinstance(one, Submission) else _rejected(one) for one in page.items]
        return {"submissions": found, **({"next": found[-1]["request_id"]} if page.has_more and found else {})}

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self.threads)


def record(found: Submission) -> dict[str, object]:
    """Show a message of the key's own: addresses too, since the key has sent to them."""
    code, enhanced, queue_id = reply_codes(found.reply)
    is_failed = found.state == "smtp_failed"
    return {
        "request_id": request_id(found.email_id),
        "id": found.email_id,
        "status": found.state,
        "code": "smtp_rejected" if is_failed else None,
        "message": found.reply if is_failed else None,
        "delivery": found.status,
        "uncertain": found.is_uncertain,
        "attempts": found.attempts,
        "recipient_domains": domains_of(found.recipients),
        "recipient_count": len(found.recipients),
        "recipients": [{"email": one.email, "status": one.status, "reason": one.reason} for one in found.fates],
        "smtp": {"code": code, "enhanced_code": enhanced, "queue_id": queue_id, "reply": found.reply or None},
        "message_id": found.message_id,
        "queue_id": found.queue_id,
        "provider_id": found.provider_id,
        "scheduled_at": shown(found.scheduled_at),
        "created_at": shown(found.created_at),
        "updated_at": shown(found.updated_at),
        "expires_at": None,
    }


def _rejected(found: Rejection) -> dict[str, object]:
    return {
        "request_id": found.request_id,
        "id": None,
        "status": "rejected",
        "code": found.rule,
        "message": found.text,
        "ref": found.ref,
        "recipient_domains": domains_of(found.recipients),
        "recipient_count": len(found.recipients),
        "smtp": {"code": found.code, "enhanced_code": found.enhanced, "queue_id": None, "reply": None},
        "created_at": shown(found.refused_at),
        "updated_at": shown(found.refused_at),
        "expires_at": None,
    }


def refused(refusal: Refuse, dialect: Dialect) -> Refused:
    """Phrase a refusal: its status, its code, and the field as this dialect calls it."""
    status, field = refusal.rule.http.status, refusal.rule.field.named(dialect)
    text = refusal.text.replace(_SEND_AT, field) if refusal.rule is Rule.CONTROL_FIELD else refusal.text
    headers = {}
    if status == _UNAVAILABLE:
        headers["Retry-After"] = "5"
    elif refusal.rule is Rule.DAILY_QUOTA:
        headers["Retry-After"] = str(_seconds_to_midnight(datetime.now(UTC)))
    errors = [{"field": field, "code": refusal.rule.value, "message": text}]
    if refusal.token:
        errors[0]["ref"] = refusal.ref
    name = _RESENDS.get(refusal.rule, "")
    return Refused(status, refusal.rule.http.code, text, errors=errors, headers=headers, name=name, ref=refusal.ref)


def _seconds_to_midnight(now: datetime) -> int:
    return 86_400 - (now.hour * 60 + now.minute) * 60 - now.second


def _bulk(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(UUID(text.removeprefix("bulk_")))
    except ValueError:
        raise bad("bulk", "expected a bulk_request_id") from None


def _not_there() -> Refused:
    return Refused(404, "submission_not_found", "no submission of this key has that id")
