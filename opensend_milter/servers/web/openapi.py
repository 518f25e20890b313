"""The OpenAPI document of the HTTP front door."""

from __future__ import annotations

from importlib.metadata import version
from typing import cast, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.couriers import CourierName
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.rules import Rule
from opensend_milter.servers.web import openapi_fields
from opensend_milter.servers.web.messages import LONGEST_DOMAIN, LONGEST_Q, STATUSES
from opensend_milter.servers.web.openapi_fields import Schema, listed, ref, text
from opensend_milter.servers.web.openapi_words import explained
from opensend_milter.servers.web.wishes import BATCH_VALIDATION, LONGEST_BULK_KEY, LONGEST_KEY

_ULID = "req_[0-7][0-9A-HJKMNP-TV-Z]{25}"
_UUID = "[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"
_OF_ALL = ["400", "401", "403", "404", "405", "408", "413", "429", "503"]
_OF_SENDING = [*_OF_ALL, "402", "409", "415", "422"]
_STATES = ["received", "smtp_submission_started", "smtp_accepted", "smtp_failed", "rejected", "canceled"]
_LAST_EVENTS = [
    "queued", "scheduled", "delivery_delayed", "sent", "delivered", "opened", "clicked", "bounced", "complained",
    "failed", "canceled", "suppressed",
]  # fmt: skip


def routes(document: Schema) -> list[Route]:
    """Return the route of the document."""

    async def as_json(_: Request) -> Response:
        return JSONResponse(document)

    return [Route("/openapi.json", as_json, methods=["GET"])]


def openapi(*, max_bulk_messages: int, limits: RequestLimits) -> dict[str, object]:
    """Describe every path that a client may use."""
    schemas = {**openapi_fields.schemas(limits, max_bulk_messages), **_answers()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "opensend-milter",
            "version": version("opensend-milter"),
            "description": "Send mail with an API key. A 202 means that the message is committed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"header": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "headers": {
                "RequestId": {"description": "also in the body of an error", "required": True, "schema": text(_ULID)}
            },
            "links": {
                "Submission": {"operationId": "getSubmission", "parameters": {"id": "$response.body#/request_id"}},
                "Email": {"operationId": "getEmail", "parameters": {"id": "$response.body#/id"}},
            },
            "responses": {"Error": _answer("Why not", "Error")},
            "schemas": {name: explained(cast("Schema", one), name) for name, one in schemas.items()},
        },
    }


def _paths() -> Schema:
    return {
        "/v1/send": {"post": _operation("send", "Send a message", "Accepted", "202", _WAIT, _KEY, body="Send")},
        "/v1/send-bulk": {
            "post": _operation("sendBulk", "Send several messages", "BulkAccepted", "202", _BULK_KEY, body="Bulk")
        },
        "/v1/submissions": {
            "get": _operation("listSubmissions", "List your messages", "Submissions", "200", *_FILTERS)
        },
        "/v1/submissions/{id}": {"get": _operation("getSubmission", "What became of one", "Submission", "200", _ID)},
        "/v1/messages": {"get": _operation("listMessages", "Find messages and refusals", "Messages", "200", *_SEARCH)},
        "/v1/messages/{id}": {"get": _operation("getMessage", "The story of one", "Message", "200", _ANY_ID)},
        "/v1/keys/self": {"get": _operation("getKey", "What this key may do", "Key", "200")},
        "/emails": {
            "get": _operation("listEmails", "List what the key may read", "EmailList", "200", *_CURSORS),
            "post": _operation("sendEmail", "Send, as with Resend", "Id", "200", _KEY, body="Email"),
        },
        "/emails/batch": {
            "post": _operation("sendEmails", "Send several", "Batch", "200", _BULK_KEY, _VALIDATION, body="Emails")
        },
        "/emails/{id}": {
            "get": _operation("getEmail", "What was written, and what became of it", "WholeEmail", "200", _ID),
            "patch": _operation("updateEmail", "Send it at another time", "Changed", "200", _ID, body="Time"),
        },
        "/emails/{id}/cancel": {"post": _operation("cancelEmail", "Take it back", "Changed", "200", _ID)},
        "/healthz": {"get": _open("getHealth", "Whether the process lives", "405", "503")},
        "/readyz": {"get": _open("getReadiness", "Whether it could take a message now", "405", "503")},
    }


def _query(name: str, said: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": said, "schema": schema}


_ID: Schema = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "a request_id or an id",
    "schema": {"type": "string", "minLength": 1},
}
_ANY_ID: Schema = {**_ID, "description": "a request_id, an id, or by what a refusal is known"}
_WAIT = _query("wait", "seconds to wait for the outcome", {"type": "integer", "minimum": 0, "maximum": 30})


def _idempotency(longest: int) -> Schema:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "the same key and content within 24 hours is answered as the first time",
        "schema": text("[ -~]*[!-~][ -~]*", maxLength=longest),
    }


_KEY, _BULK_KEY = _idempotency(LONGEST_KEY), _idempotency(LONGEST_BULK_KEY)
_VALIDATION: Schema = {
    "name": BATCH_VALIDATION,
    "in": "header",
    "description": "strict: all are taken, or none; permissive: one that is wrong is refused by itself",
    "schema": {"type": "string", "enum": ["strict", "permissive"], "default": "strict"},
}
_LIMIT = _query("limit", "at most so many", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20})
_FILTERS = (
    _query("status", "only in this state", {"type": "string", "enum": _STATES}),
    _query("since", "not older", {"type": "string", "format": "date-time"}),
    _query("bulk", "only of this bulk_request_id", text(f"(bulk_)?{_UUID}")),
    _query("before", "the `next` of the page before", text(f"{_ULID}|{_UUID}")),
    _LIMIT,
)
_CURSORS = (
    _LIMIT,
    _query("after", "older than this email", text(f"{_ULID}|{_UUID}")),
    _query("before", "newer than this email; not with `after`", text(f"{_ULID}|{_UUID}")),
)
_SEARCH = (
    _query(
        "q", "what is known of it: an id, an address, a Message-ID, words", {"type": "string", "maxLength": LONGEST_Q}
    ),
    _query("since", "not older", {"type": "string", "format": "date-time"}),
    _query("key", "only by this key", text(_UUID)),
    _query("domain", "only from this domain", {"type": "string", "minLength": 1, "maxLength": LONGEST_DOMAIN}),
    _query("status", "only with this one", {"type": "string", "enum": list(STATUSES)}),
    _query("rule", "only what this rule refused", {"type": "string", "enum": [one.value for one in Rule]}),
    _query("courier", "only what this courier has tried", {"type": "string", "enum": list(get_args(CourierName))}),
    _query("before", "the `next` of the page before", text(f"[0-9]{{1,16}}-({_UUID}|[0-9]{{1,18}})")),
    _query("limit", "at most so many", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
)


def _operation(
    name: str, summary: str, answer: str, status: str, *parameters: Schema, body: str | None = None
) -> Schema:
    good = dict(_answer(summary, answer))
    if name in {"send", "sendEmail"}:
        link = "Submission" if name == "send" else "Email"
        good["links"] = {link: {"$ref": f"#/components/links/{link}"}}
    found: dict[str, object] = {
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {status: good, **_errors(*(_OF_SENDING if body else _OF_ALL))},
    }
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(body)}}}
    return found


def _open(name: str, summary: str, *errors: str) -> Schema:
    """Describe what needs no key."""
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {"200": _answer(summary, "State"), **_errors(*errors)},
    }


def _errors(*statuses: str) -> Schema:
    return {status: {"$ref": "#/components/responses/Error"} for status in statuses}


def _answer(said: str, schema: str) -> Schema:
    return {
        "description": said,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
        "content": {"application/json": {"schema": ref(schema)}},
    }


def _answers() -> Schema:
    string, maybe, number, yes = ({"type": kind} for kind in ("string", ["string", "null"], "integer", "boolean"))
    wrong = _object(["message"], index=number, field=string, code=string, message=string, ref=_REF)
    smtp = _object([], code={"type": ["integer", "null"]}, enhanced_code=maybe, queue_id=maybe, reply=maybe)
    recipient = _object(["email", "status"], email=string, status=string, reason=maybe)
    result = _object(
        ["index", "request_id", "status"],
        index=number,
        request_id=text(_ULID),
        status={"enum": ["accepted", "rejected"]},
        id=text(_UUID),
        code=string,
        message=string,
        retryable=yes,
        errors=listed(wrong),
    )
    submission = _object(
        ["request_id", "id", "status", "code", "message", "recipient_domains", "recipient_count", "smtp", "created_at",
         "updated_at"],
        request_id=text(_ULID),
        id=maybe,
        status={"enum": _STATES},
        code=maybe,
        message=maybe,
        ref={"anyOf": [_REF, {"type": "null"}]},
        delivery=string,
        uncertain=yes,
        attempts=number,
        recipient_domains=listed(string),
        recipient_count=number,
        recipients=listed(recipient),
        smtp=smtp,
        message_id=maybe,
        queue_id=maybe,
        provider_id=maybe,
        scheduled_at=_MOMENT_OR_NULL,
        created_at=_MOMENT,
        updated_at=_MOMENT,
        expires_at=_MOMENT_OR_NULL,
    )  # fmt: skip
    email: dict[str, Schema] = {
        "id": text(_UUID),
        "message_id": maybe,
        "to": listed(string),
        "from": string,
        "created_at": _MOMENT,
        "subject": string,
        "bcc": listed(string),
        "cc": listed(string),
        "reply_to": listed(string),
        "last_event": {"enum": _LAST_EVENTS},
        "scheduled_at": _MOMENT_OR_NULL,
        "topic_id": maybe,
    }
    moment = _object(["at", "what", "who", "text"], at=_MOMENT_OR_NULL, what=string, who=string, text=string)
    standing = _object(
        ["email", "status", "reason", "at", "suppressed"],
        email=string,
        status=string,
        reason=maybe,
        at=_MOMENT_OR_NULL,
        suppressed=maybe,
    )
    step = _object(["text", "command", "about"], text=string, command=string, about=listed(string))
    found = _object(
        ["kind", "id", "at", "status", "rule", "sender", "recipients", "subject", "queue_id", "key_name", "ref"],
        kind={"enum": ["message", "refusal"]},
        id=string,
        at=_MOMENT,
        status={"type": "string"},
        rule=maybe,
        sender=string,
        recipients=listed(string),
        subject=maybe,
        queue_id=maybe,
        key_name=maybe,
        ref=maybe,
    )
    return {
        "Messages": _object(
            ["messages", "searched_back_to", "noted_to"],
            messages=listed(found),
            searched_back_to=_MOMENT_OR_NULL,
            noted_to=_MOMENT_OR_NULL,
            next=string,
        ),
        "Message": _object(
            [
                "id",
                "status",
                "verdict",
                "cause",
                "ref",
                "sender",
                "subject",
                "queue_id",
                "message_id",
                "created_at",
                "timeline",
                "recipients",
                "next_steps",
            ],
            id=string,
            status=string,
            verdict=string,
            cause=string,
            ref=maybe,
            sender=string,
            subject=string,
            queue_id=maybe,
            message_id=maybe,
            created_at=_MOMENT,
            timeline=listed(moment),
            recipients=listed(standing),
            next_steps=listed(step),
        ),
        "Accepted": _object(
            ["status", "request_id", "id"],
            status={"const": "accepted"},
            request_id=text(_ULID),
            id=text(_UUID),
            submission={"anyOf": [ref("Submission"), {"type": "null"}]},
        ),
        "BulkAccepted": _object(
            ["bulk_request_id", "total", "accepted", "rejected", "results"],
            bulk_request_id=text(f"bulk_{_UUID}"),
            total=number,
            accepted=number,
            rejected=number,
            results=listed(result),
        ),
        "Submission": submission,
        "Submissions": _object(["submissions"], submissions=listed(ref("Submission")), next=text(_ULID)),
        "Key": _object(["id", "name", "permission"], id=string, name=string, permission=string, domain=maybe),
        "Id": _object(["id"], id=text(_UUID)),
        "Batch": _object(
            ["data"],
            data=listed(ref("Id")),
            errors=listed(_object(["index", "message"], index=number, message=string)),
        ),
        "WholeEmail": _object(
            [*email, "object", "html", "text", "tags", "sent_at", "recipients"],
            **email,
            object={"const": "email"},
            html=maybe,
            text=maybe,
            tags=listed(_object(["name", "value"], name=string, value=string)),
            sent_at=_MOMENT_OR_NULL,
            recipients=listed(recipient),
        ),
        "EmailList": _object(
            ["object", "has_more", "data"],
            object={"const": "list"},
            has_more=yes,
            data=listed(_object([*email], **email)),
        ),
        "Changed": _object(["object", "id"], object={"const": "email"}, id=text(_UUID)),
        "State": _object(["status"], status=string),
        "Error": _object(
            ["status", "code", "message", "request_id", "retryable", "name", "statusCode"],
            status={"const": "error"},
            code=string,
            message=string,
            request_id=text(_ULID),
            retryable=yes,
            ref=_REF,
            errors=listed(wrong),
            name=string,
            statusCode=number,
        ),
    }


_REF = text("[0-9A-HJKMNP-TV-Z]{10}", description="by what the record of a refusal is found")
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_MOMENT_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}


def _object(required: list[str], /, **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}
