"""The OpenAPI document of the HTTP front door, and a page that shows it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

Schema = Mapping[str, object]
_ADDRESSES: Schema = {
    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "an address, or several; a display name is allowed",
}
_STRING: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}


def routes(*, max_bulk_messages: int) -> list[Route]:
    """Return the routes."""
    document = openapi(max_bulk_messages=max_bulk_messages)
    page = _page(document)

    async def as_json(_: Request) -> Response:
        return JSONResponse(document)

    async def as_page(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    return [Route("/openapi.json", as_json, methods=["GET"]), Route("/docs", as_page, methods=["GET"])]


def openapi(*, max_bulk_messages: int) -> dict[str, object]:
    """Describe every path that a key may use."""
    errors = ["400", "401", "402", "403", "404", "405", "408", "409", "413", "415", "422", "429", "503"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "opensend-milter",
            "version": version("opensend-milter"),
            "description": "Send mail with an API key. A 202 means that the message is committed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"header": []}],
        "paths": {
            "/v1/send": {"post": _operation("Send a message", "Send", "Accepted", "202", errors, _WAIT, _IDEMPOTENCY)},
            "/v1/send-bulk": {
                "post": _operation("Send several messages", "Bulk", "BulkAccepted", "202", errors, _IDEMPOTENCY)
            },
            "/v1/submissions": {"get": _operation("List your messages", None, "Submissions", "200", errors, *_FILTERS)},
            "/v1/submissions/{id}": {"get": _operation("What became of one", None, "Submission", "200", errors, _ID)},
            "/v1/keys/self": {"get": _operation("What this key may do", None, "Key", "200", errors)},
            "/emails": {"post": _operation("Send, as with Resend", "Email", "Id", "200", errors, _IDEMPOTENCY)},
            "/emails/batch": {"post": _operation("Send several", "Emails", "Batch", "200", errors, _IDEMPOTENCY)},
            "/emails/{id}": {"get": _operation("What became of one", None, "EmailState", "200", errors, _ID)},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "responses": {"Error": _answer("Why not", "Error")},
            "schemas": _schemas(max_bulk_messages),
        },
    }


def _query(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": text, "schema": schema}


_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": _STRING}
_WAIT = _query("wait", "seconds to wait for the outcome", {"type": "integer", "minimum": 0, "maximum": 30})
_IDEMPOTENCY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the same key and content within 24 hours is answered as the first time",
    "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!-~]+$"},
}
_FILTERS = (
    _query("status", "only in this state", _STRING),
    _query("since", "not older", {"type": "string", "format": "date-time"}),
    _query("bulk", "only of this bulk_request_id", _STRING),
    _query("before", "the `next` of the page before", _STRING),
    _query("limit", "at most so many", {"type": "integer", "minimum": 1, "maximum": 100}),
)


def _operation(  # a table
    summary: str, body: str | None, answer: str, status: str, errors: list[str], *parameters: Schema
) -> Schema:
    found: dict[str, object] = {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            status: _answer(summary, answer),
            **{code: {"$ref": "#/components/responses/Error"} for code in errors},
        },
    }
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return found


def _answer(text: str, schema: str) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], /, **properties: Schema) -> dict[str, object]:
    return {"type": "object", "required": required, "properties": properties}


def _closed(required: list[str], /, **properties: Schema) -> dict[str, object]:
    return {**_object(required, **properties), "additionalProperties": False}


def _list(item: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": item, **bounds}


def _schemas(max_bulk_messages: int) -> Schema:
    tag = _closed(["name", "value"], name=_STRING, value=_STRING)
    shared: dict[str, Schema] = {
        "from": _STRING, "to": _ADDRESSES, "cc": _ADDRESSES, "bcc": _ADDRESSES, "reply_to": _ADDRESSES,
        "subject": _STRING, "headers": {"type": "object", "additionalProperties": _STRING},
        "tags": {"oneOf": [_list(tag), {"type": "object", "additionalProperties": _STRING}]},
    }  # fmt: skip
    file = _closed(
        ["filename", "content_type", "data"],
        filename=_STRING,
        content_type=_STRING,
        data={"type": "string", "format": "byte"},
        content_id=_STRING,
    )
    send = _closed(
        ["to", "subject", "body"],
        **shared,
        body=_STRING,
        body_html=_STRING,
        from_name=_STRING,
        attachments=_list(file),
        metadata={},
        send_at=_STRING,
    )
    email = _object(
        ["from", "to", "subject"],
        **shared,
        text=_STRING,
        html=_STRING,
        attachments=_list(_OBJECT),
        scheduled_at=_STRING,
    )
    wrong = _object(["message"], field=_STRING, code=_STRING, message=_STRING)
    error = _object(
        ["status", "code", "message", "request_id", "retryable", "name", "statusCode"],
        status={"const": "error"},
        code=_STRING,
        message=_STRING,
        request_id=_STRING,
        retryable={"type": "boolean"},
        errors=_list(wrong),
        name=_STRING,
        statusCode={"type": "integer"},
    )
    return {
        "Send": send,
        "Bulk": _closed(["messages"], messages=_list(_ref("Send"), minItems=1, maxItems=max_bulk_messages)),
        "Email": email,
        "Emails": _list(_ref("Email"), minItems=1, maxItems=max_bulk_messages),
        "Accepted": _object(["status", "request_id", "id"], status=_STRING, request_id=_STRING, id=_STRING),
        "BulkAccepted": _object(
            ["bulk_request_id", "total", "accepted", "rejected", "results"], results=_list(_OBJECT)
        ),
        "Submission": _object(["request_id", "status", "recipient_count", "created_at", "updated_at"]),
        "Submissions": _object(["submissions"], submissions=_list(_ref("Submission")), next=_STRING),
        "Key": _object(["id", "name", "permission"]),
        "Id": _object(["id"], id=_STRING),
        "Batch": _object(["data"], data=_list(_ref("Id"))),
        "EmailState": _object(["object", "id", "last_event"]),
        "Error": error,
    }


def _page(document: Mapping[str, object]) -> str:
    paths = document["paths"]
    assert isinstance(paths, dict)  # noqa: S101  # our own
    rows = "".join(
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td>"
        f"<td>{html.escape(str(said['summary']))}</td></tr>"
        for path, methods in paths.items()
        for method, said in methods.items()
    )
    text = html.escape(json.dumps(document, indent=2))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>opensend-milter</title>'
        "<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem 1rem .2rem 0}pre{background:#f4f4f4;padding:1rem;overflow:auto}</style>"
        "<h1>opensend-milter</h1><p>Send mail with an API key: <code>Authorization: Bearer KEY</code>.</p>"
        f"<table>{rows}</table><h2>OpenAPI</h2><p>As JSON: /openapi.json</p><pre>{text}</pre></html>"
    )
