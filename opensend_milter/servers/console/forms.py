"""Forms: read within bounds, and taken only from a page of ours that this very browser was shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_BYTES = 16_384
_MOST_FIELDS = 10
_FIELD = "token"
NO_LONGER_GOOD = "This form is no longer good: open the page again, and send it from there."


def token_of(cookie: str, about: str = "") -> str:
    """Return what a form of ours says, beside a cookie that no other page can read and that nobody finds from this.

    `about`: what the form is good for, and nothing else.
    """
    return hmac.new(cookie.encode(), b"form:" + about.encode(), hashlib.sha256).hexdigest()


async def sent(request: Request, cookie: str) -> Mapping[str, str]:
    """Return the fields of a form that was made for this cookie; raise HTTPException."""
    found = await fields_of(request)
    check(found, cookie)
    return found


async def fields_of(request: Request) -> Mapping[str, str]:
    """Return what a form says, whoever made it; raise HTTPException."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise HTTPException(400, "This is no form of ours.") from None


def check(found: Mapping[str, str], cookie: str, about: str = "") -> None:
    """Raise HTTPException where the form was not made for this cookie, and for this."""
    if not cookie or not hmac.compare_digest(found.get(_FIELD, "").encode(), token_of(cookie, about).encode()):
        raise HTTPException(403, NO_LONGER_GOOD)
