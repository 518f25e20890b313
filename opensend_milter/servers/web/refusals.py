"""How the HTTP process says no: one shape for every error, in http-smtp-rele's words and in Resend's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from opensend_milter.core.fields import MOST_ERRORS

_UNAVAILABLE = 503
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "rate_limited",
    503: "unavailable",
}
_OF_NO_ROUTE = {
    "Not Found": "there is nothing at this path; /openapi.json lists what there is",
    "Method Not Allowed": "this path has no such method; Allow lists those that it has",
}
"""Starlette's words, and ours."""
_RESENDS = {
    401: "missing_api_key",
    402: "monthly_quota_exceeded",
    403: "restricted_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "application_error",
    409: "invalid_idempotent_request",
    429: "rate_limit_exceeded",
    503: "application_error",
}
"""What Resend calls an error; any other is a `validation_error`."""


class Refused(HTTPException):
    """An answer that says no: with a code of its own, and every field that is wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        errors: Sequence[Mapping[str, str | int]] = (),
        headers: Mapping[str, str] | None = None,
        name: str = "",
        ref: str = "",
    ) -> None:
        """`name`: what Resend calls it, where that is not the status's; `ref`: by what it is found, if recorded."""
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.errors = errors
        self.name = name
        self.ref = ref


def of_all(refused: Sequence[tuple[int, Refused]]) -> Refused:
    """Refuse a whole list for what is wrong with some of it, in the words of the first."""
    index, first = refused[0]
    if first.status_code == _UNAVAILABLE:
        # No matter of that one; and where an answer got lost, the list may be stored.
        return first
    errors = [
        {"index": place, **said}
        for place, one in refused
        for said in one.errors or ({"code": one.code, "message": one.detail},)
    ]
    text = f"[{index}]: {first.detail}; nothing of this list was taken"
    return Refused(
        first.status_code,
        first.code,
        text,
        errors=errors[:MOST_ERRORS],
        headers=first.headers,
        name=first.name,
        ref=first.ref,
    )


def error(request: Request, refused: HTTPException) -> Response:
    """Answer with an error."""
    status = refused.status_code
    code = refused.code if isinstance(refused, Refused) else CODES.get(status, "error")
    name = refused.name if isinstance(refused, Refused) else ""
    content: dict[str, object] = {
        "status": "error",
        "code": code,
        "message": _OF_NO_ROUTE.get(refused.detail, refused.detail),
        "request_id": request.state.request_id,
        "retryable": status in RETRYABLE,
        "name": name or _RESENDS.get(status, "validation_error"),
        "statusCode": status,
    }
    if isinstance(refused, Refused):
        content |= {"ref": refused.ref} if refused.ref else {}
        content |= {"errors": list(refused.errors)} if refused.errors else {}
    headers = {**(refused.headers or {}), "X-Request-Id": request.state.request_id}
    return JSONResponse(content, status_code=status, headers=headers)
