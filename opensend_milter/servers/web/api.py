"""The HTTP front door: a request as a Message; an Outcome, as a status and a JSON answer."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, create_task_group, fail_after, sleep, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import (
    EmailId,
    KeyId,
    Message,
    Outcome,
    Refuse,
    Repeat,
)
from opensend_milter.core.policy import OURS, is_within
from opensend_milter.core.rates import Decision, burst_of, client_of
from opensend_milter.core.request import Dialect
from opensend_milter.core.rules import Rule
from opensend_milter.core.submission import FINAL, Caller, Submission, request_id
from opensend_milter.servers.throttle import Throttle, fields
from opensend_milter.servers.web.bodies import NOT_YET, Asked, Bodies
from opensend_milter.servers.web.caller import secret_of
from opensend_milter.servers.web.letters import Letters
from opensend_milter.servers.web.messages import Messages
from opensend_milter.servers.web.records import Records, record, refused
from opensend_milter.servers.web.refusals import RETRYABLE, Refused, of_all
from opensend_milter.servers.web.room import MOST_MESSAGES, Visit
from opensend_milter.servers.web.wishes import (
    BATCH_VALIDATION,
    LONGEST_BULK_KEY,
    LONGEST_KEY,
    idempotency_key,
    is_permissive,
    wait_s,
)

log = logging.getLogger(__name__)
LOGINS_AT_ONCE = 4
"""Of one client."""
_QUICK_BYTES = 32_768
"""Of a message that is read at once: it takes less than a millisecond or two, and a thread would take half of that."""
_LOOK_AGAIN_S, _TURN_S = 0.25, 5.0
_JSON = ("application/json", "text/json")
T = TypeVar("T")
AcceptAll = Callable[[Sequence[Message]], Sequence[Outcome | None]]
_TOO_MANY = Refused(429, "rate_limited", "too many messages, try again later")


class Desk(Protocol):
    """What the front door asks of the database. Raises StoreUnavailable."""

    def caller(self, secret: str) -> Caller | None: ...

    def about(self, key_id: KeyId) -> dict[str, object] | None: ...

    def submissions(self, key_id: KeyId, ids: Sequence[EmailId]) -> list[Submission]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What every request of this process shares."""

    accept: AcceptAll
    """Wait for the outcome of messages that are taken all or not at all, or of one; in a thread."""
    desk: Desk
    records: Records
    letters: Letters
    messages: Messages
    throttle: Throttle
    bodies: Bodies
    threads: CapacityLimiter
    """Of those that wait for the database or read a body: as many as there can be requests."""
    deciders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MOST_MESSAGES))
    turns: WeakValueDictionary[str, CapacityLimiter] = field(default_factory=WeakValueDictionary)
    """Who looks for a key, by client: gone with the last of them."""

    # ------------------------------------------------------------------ routes

    def routes(self) -> list[Route]:
        """Return the routes of both dialects."""
        return [
            Route("/v1/send", self._send, methods=["POST"]),
            Route("/v1/send-bulk", self._send_bulk, methods=["POST"]),
            Route("/v1/keys/self", self._key, methods=["GET"]),
            Route("/emails", self._emails, methods=["GET", "POST"]),
            Route("/emails/batch", self._batch_resend, methods=["POST"]),
            *self.records.routes(self.authenticated),
            *self.letters.routes(self._caller),
            *self.messages.routes(self.authenticated),
        ]

    async def _send(self, request: Request) -> Response:
        seconds = wait_s(request)
        asked = await self._asked(request, "rele")
        email_id = await self._take_one(request, asked)
        found: dict[str, object] = {"status": "accepted", "request_id": request_id(email_id), "id": email_id}
        if seconds:
            found["submission"] = await self._await_final(asked.key_id, email_id, seconds)
        return JSONResponse(found, 202, fields(asked.limit))

    async def _emails(self, request: Request) -> Response:
        if request.method != "POST":
            return await self.letters.listed(request, await self._caller(request))
        asked = await self._asked(request, "resend")
        email_id = await self._take_one(request, asked)
        return JSONResponse({"id": email_id}, 200, fields(asked.limit))

    async def _send_bulk(self, request: Request) -> Response:
        bulk_id = str(uuid4())
        items, limit = await self._take_all(request, await self._asked(request, "rele", bulk_id))
        results = [{"index": index, **_result(email_id, taken)} for index, (email_id, taken) in enumerate(items)]
        accepted = sum(result["status"] == "accepted" for result in results)
        found = {"bulk_request_id": f"bulk_{bulk_id}", "total": len(results), "accepted": accepted}
        return JSONResponse({**found, "rejected": len(results) - accepted, "results": results}, 202, fields(limit))

    async def _batch_resend(self, request: Request) -> Response:
        asked = await self._asked(request, "resend", str(uuid4()))
        if not is_permissive(request.headers):
            ids, limit = await self._take_together(request, asked)
            return JSONResponse({"data": [{"id": email_id} for email_id in ids]}, 200, fields(limit))
        items, limit = await self._take_all(request, asked)
        good = [{"id": taken} for _, taken in items if not isinstance(taken, Refused)]
        bad = _refused(items)
        if not any(taken == email_id for email_id, taken in items):
            # Nothing is new, and so nothing is lost by saying that this is another list under an old name.
            _raise_any(request, items, [(index, one) for index, one in bad if one.code == Rule.DUPLICATE_KEY.http.code])
        errors = [{"index": index, "message": one.detail} for index, one in bad]
        return JSONResponse({"data": good, "errors": errors}, 200, fields(limit))

    async def _key(self, request: Request) -> Response:
        key_id = await self.authenticated(request)
        found = await self._in_thread(lambda: self.desk.about(key_id))
        if found is None:
            raise _forbidden()
        return JSONResponse(
            {name: value.isoformat() if isinstance(value, datetime) else value for name, value in found.items()}
        )

    # ------------------------------------------------------------------ who asks

    async def authenticated(self, request: Request) -> KeyId:
        """Return whose request it is; raise Refused where nobody's."""
        return (await self._caller(request)).key_id

    async def _caller(self, request: Request) -> Caller:
        secret = secret_of(request.headers)
        if secret is None:
            raise Refused(
                401,
                "unauthorized",
                "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        visit: Visit = request.state.visit
        address = visit.client_address
        async with self._turn(address):
            if refusal := self.throttle.failing(address):
                raise Refused(429, "rate_limited", "too many failed authentications", headers=fields(refusal))
            caller = await self._in_thread(lambda: self.desk.caller(secret))
            if caller is None:
                await self._in_thread(lambda: self.throttle.note_failure(address))
                raise _forbidden()
        if caller.networks is not None and not is_within(address, caller.networks):
            raise _forbidden()
        visit.belongs_to(caller.key_id)
        return caller

    @asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        """Let few of one client ask for a key at once: many together would all ask before the first is seen to fail."""
        turns = self.turns.setdefault(client_of(address), CapacityLimiter(LOGINS_AT_ONCE))
        try:
            with fail_after(_TURN_S):
                await turns.acquire()
        except TimeoutError:
            raise StoreUnavailable("other logins of the same client take too long") from None
        try:
            yield
        finally:
            turns.release()

    async def _within_limits(self, address: str, key_id: KeyId) -> Decision:
        decision = self.throttle.check_at_once(address, key_id)
        if decision is None:
            decision = await self._in_thread(lambda: self.throttle.check(address, key_id))
        if not decision.allowed:
            raise Refused(429, _TOO_MANY.code, _TOO_MANY.detail, headers=fields(decision))
        return decision

    async def _within_limits_together(self, asked: Asked, count: int) -> Decision:
        """Count so many or none; the first was counted with the request."""
        if count == 1:
            return asked.limit
        decision = await self._in_thread(lambda: self.throttle.check(asked.client_address, asked.key_id, count - 1))
        if decision.allowed:
            return decision
        at_once = int(burst_of(decision.limit))
        if count > at_once:
            text = (
                f"{count} messages that are taken all or not at all: a limit of {decision.limit} a minute lets "
                f"{at_once} through at once; send fewer, or with {BATCH_VALIDATION}: permissive"
            )
            raise Refused(413, "payload_too_large", text)
        raise Refused(429, _TOO_MANY.code, _TOO_MANY.detail, headers=fields(decision.with_refused(count)))

    async def _asked(self, request: Request, dialect: Dialect, bulk_id: str | None = None) -> Asked:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        caller = await self._caller(request)
        if bulk_id and not caller.may_bulk:
            raise Refused(403, "forbidden", "this API key may not send several messages in one request")
        if kind not in _JSON:
            raise Refused(415, "unsupported_media_type", "expected Content-Type: application/json")
        address = request.state.visit.client_address
        return Asked(
            limit=await self._within_limits(address, caller.key_id),
            endpoint=request.url.path,
            dialect=dialect,
            key_id=caller.key_id,
            client_address=address,
            is_tls=request.url.scheme == "https",
            idempotency_key=idempotency_key(request.headers, LONGEST_BULK_KEY if bulk_id else LONGEST_KEY),
            bulk_id=bulk_id,
        )

    # ------------------------------------------------------------------ what is asked

    async def _take_one(self, request: Request, asked: Asked) -> EmailId:
        visit: Visit = request.state.visit
        email_id = request.state.email_id
        message = await self._read(request, lambda body: self.bodies.one(body, asked, email_id), most=_QUICK_BYTES)
        taken = await self._take(visit, message, asked.dialect)
        # Whoever waits for the outcome of a message holds nothing of it.
        visit.empty()
        return taken

    async def _take_together(self, request: Request, asked: Asked) -> tuple[list[EmailId], Decision]:
        """Take all of them or none: fields first, then limits, then rules."""
        visit: Visit = request.state.visit
        asked_for = await self._read(request, lambda body: self.bodies.several(body, asked), most=0)
        _raise_any(request, asked_for, _refused(asked_for))
        limit = await self._within_limits_together(asked, len(asked_for))
        messages = [message for _, message in asked_for if not isinstance(message, Refused)]
        answers = [one and _answer(one, asked.dialect) for one in await self._decided(visit, messages)]
        judged = [(email_id, answer) for (email_id, _), answer in zip(asked_for, answers, strict=True)]
        _raise_any(request, asked_for, _refused(judged))
        return [answer for answer in answers if isinstance(answer, str)], limit

    async def _take_all(
        self, request: Request, asked: Asked
    ) -> tuple[list[tuple[EmailId, EmailId | Refused]], Decision]:
        """Take them in order, as many as the limits allow; each has an id, whatever becomes of it."""
        visit: Visit = request.state.visit
        asked_for = await self._read(request, lambda body: self.bodies.several(body, asked), most=0)
        # The first was counted with the request.
        places, limit = 1, asked.limit
        if more := len(asked_for) - 1:
            some, limit = await self._in_thread(
                lambda: self.throttle.check_some(asked.client_address, asked.key_id, more)
            )
            places += some
        found: list[tuple[EmailId, EmailId | Refused]] = [(email_id, _TOO_MANY) for email_id, _ in asked_for]

        async def take(index: int) -> None:
            email_id, message = asked_for[index]
            found[index] = email_id, await self._tried(visit, message, asked.dialect)

        done = 0
        while places and done < len(found):
            begun, done = done, min(done + places, len(found))
            async with create_task_group() as group:
                for index in range(begun, done):
                    group.start_soon(take, index)
            # What was ours already gives its place to the next: a bulk that is repeated as a whole gets to its end.
            places = sum(isinstance(taken, str) and taken != email_id for email_id, taken in found[begun:done])
        return found, limit.with_refused(len(found) - done)

    async def _read(self, request: Request, read: Callable[[bytearray], T], *, most: int) -> T:
        """Read the body at once, where it has no more octets; otherwise in a thread, one after the other."""
        body = bytearray()
        # Not `request.body()`, which keeps it for as long as the request lasts.
        async for piece in request.stream():
            body += piece
        if len(body) <= most:
            return read(body)
        async with request.state.visit.reading():
            return await self._in_thread(lambda: read(body))

    async def _tried(self, visit: Visit, message: Message | Refused, dialect: Dialect) -> EmailId | Refused:
        if isinstance(message, Refused):
            return message
        try:
            return await self._take(visit, message, dialect)
        except Refused as refusal:
            return refusal
        except Exception:
            # Others of the same request may be stored by now: their ids must be told.
            log.exception("%s: not taken", message.queue_id)
            return NOT_YET

    async def _take(self, visit: Visit, message: Message, dialect: Dialect) -> EmailId:
        (outcome,) = await self._decided(visit, [message])
        answer = _answer(outcome or OURS, dialect)
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def _decided(self, visit: Visit, messages: Sequence[Message]) -> Sequence[Outcome | None]:
        async with visit.deciding():
            # Neither the client that goes away nor another request that fails must end what is under way.
            return await to_thread.run_sync(lambda: self.accept(messages), limiter=self.deciders)

    async def _await_final(self, key_id: KeyId, email_id: EmailId, wait_s: float) -> dict[str, object] | None:
        """Wait for the outcome; None where it cannot be looked up: the message is committed whatever happens here."""
        ends_at = time.monotonic() + wait_s
        found: list[Submission] = []
        while True:
            try:
                found = await self._in_thread(lambda: self.desk.submissions(key_id, [email_id]))
            except StoreUnavailable as error:
                log.warning("%s: outcome not looked up: %s", request_id(email_id), error)
            except Exception:
                log.exception("%s: outcome not looked up", request_id(email_id))
                return None
            if (found and found[0].state in FINAL) or time.monotonic() > ends_at:
                return record(found[0]) if found else None
            await sleep(_LOOK_AGAIN_S)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self.threads)


def _answer(outcome: Outcome, dialect: Dialect) -> EmailId | Refused:
    if isinstance(outcome, Refuse):
        return refused(outcome, dialect)
    return outcome.email_id if isinstance(outcome, Repeat) else outcome


def _refused(items: Sequence[tuple[EmailId, object]]) -> list[tuple[int, Refused]]:
    return [(index, one) for index, (_, one) in enumerate(items) if isinstance(one, Refused)]


def _raise_any(request: Request, items: Sequence[tuple[EmailId, object]], wrong: Sequence[tuple[int, Refused]]) -> None:
    """Refuse a request for what is wrong with some of its messages; it has the id under which the first is recorded."""
    if wrong:
        request.state.request_id = request_id(items[wrong[0][0]][0])
        raise of_all(wrong)


def _result(email_id: EmailId, taken: EmailId | Refused) -> dict[str, object]:
    """Show one message of a bulk; one that was sent again is called as it was the first time."""
    if isinstance(taken, Refused):
        return {
            "request_id": request_id(email_id),
            "status": "rejected",
            "code": taken.code,
            "message": taken.detail,
            "retryable": taken.status_code in RETRYABLE,
            "errors": list(taken.errors),
        }
    return {"request_id": request_id(taken), "status": "accepted", "id": taken}


def _forbidden() -> Refused:
    return Refused(403, "forbidden", "this API key is not known, or may not be used", name="invalid_api_key")
