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
    Rejection,
    Submission,
    domains_of,
    email_of_request,
    reply_codes,
    request_id,
)
from opensend_milter.servers.web.refusals import Refused

T = TypeVar("T")
Authenticated = Callable[[Request], Awaitable[KeyId]]
MOST_AT_ONCE, AT_ONCE = 100, 20
_STATUSES = {
    "received": ("queued", "scheduled"),
    "smtp_submission_started": ("processing",),
    "smtp_accepted": ("sent", "delivered", "bounced", "complained"),
    "smtp_failed": ("failed",),
    "canceled": ("canceled", "cancelled"),
}
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

    def page(
        self,
        key_id: KeyId,
        *,
        statuses: Sequence[str] | None,
        since: datetime | None,
        bulk_id: str | None,
        before: EmailId | None,
        limit: int,
    ) -> list[Submission]: ...

    def rejection(self, key_id: KeyId, request_id: str) -> Rejection | None: ...


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

        async def as_resend(request: Request) -> Response:
            key_id = await authenticated(request)
            email_id = email_of_request(request.path_params["id"])
            found = await self._in_thread(lambda: self.store.submissions(key_id, [email_id])) if email_id else []
            if not found:
                raise _not_there()
            return JSONResponse(_as_resend(found[0]))

        return [
            Route("/v1/submissions", some, methods=["GET"]),
            Route("/v1/submissions/{id}", one, methods=["GET"]),
            Route("/emails/{id}", as_resend, methods=["GET"]),
        ]

    async def _one(self, key_id: KeyId, asked: str) -> dict[str, object]:
        email_id = email_of_request(asked)
        if email_id is None:
            raise _not_there()
        if found := await self._in_thread(lambda: self.store.submissions(key_id, [email_id])):
            return record(found[0])
        rejection = await self._in_thread(lambda: self.store.rejection(key_id, request_id(email_id)))
        if rejection is None:
            raise _not_there()
        return _rejected(rejection)

    async def _some(self, key_id: KeyId, request: Request) -> dict[str, object]:
        query = request.query_params
        unknown = sorted(query.keys() - {"status", "since", "bulk", "before", "limit"})
        if unknown:
            raise bad(unknown[0], "expected status, since, bulk, before or limit")
        limit = limit_of(query.get("limit"))
        status, bulk, before = query.get("status"), query.get("bulk"), query.get("before")
        if status is not None and status not in _STATUSES:
            raise bad("status", f"expected one of {', '.join(_STATUSES)}")
        before_id = email_of_request(before) if before is not None else None
        if before is not None and before_id is None:
            raise bad("before", "expected a request_id")
        since, bulk_id = moment_of(query.get("since")), _bulk(bulk)
        found = await self._in_thread(
            lambda: self.store.page(
                key_id,
                statuses=_STATUSES[status] if status else None,
                since=since,
                bulk_id=bulk_id,
                before=before_id,
                limit=limit,
            )
        )
        more = {"next": request_id(found[-1].email_id)} if len(found) == limit else {}
        return {"submissions": [record(one) for one in found], **more}

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


def _as_resend(found: Submission) -> dict[str, object]:
    return {
        "object": "email",
        "id": found.email_id,
        "to": list(found.recipients),
        "created_at": shown(found.created_at),
        "scheduled_at": shown(found.scheduled_at),
        "last_event": found.status,
    }


def shown(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None


def limit_of(text: str | None) -> int:
    if text is None:
        return AT_ONCE
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:4]) <= MOST_AT_ONCE or len(text) > 3:  # noqa: PLR2004
        raise bad("limit", f"expected a number from 1 to {MOST_AT_ONCE}")
    return int(text)


def moment_of(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise bad("since", "expected a time such as 2026-11-21T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _bulk(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(UUID(text.removeprefix("bulk_")))
    except ValueError:
        raise bad("bulk", "expected a bulk_request_id") from None


def bad(name: str, message: str) -> Refused:
    return Refused(400, "validation_failed", f"{name}: {message}", errors=[{"field": name, "message": message}])


def _not_there() -> Refused:
    return Refused(404, "submission_not_found", "no submission of this key has that id")
