"""What a request says besides its key and its body: its name, how long it waits, and whether it is all or nothing."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request

from opensend_milter.core.control import IDEMPOTENCY_KEY
from opensend_milter.servers.web.refusals import Refused

LONGEST_KEY, LONGEST_BULK_KEY = 256, 252
"""Of an Idempotency-Key; in a bulk with room for `#499`."""
LONGEST_WAIT_S = 30
BATCH_VALIDATION = "x-batch-validation"


def idempotency_key(headers: Headers, longest: int) -> str | None:
    """Return the name of a request; None where it has none."""
    found = {value.strip() for name in IDEMPOTENCY_KEY for value in headers.getlist(name)}
    if not found:
        return None
    key = found.pop()
    if found or not key or len(key) > longest or not key.isascii() or not key.isprintable():
        text = f"Idempotency-Key: expected one, of 1 to {longest} printable characters"
        raise Refused(400, "invalid_idempotency_key", text, name="invalid_idempotency_key")
    return key


def is_permissive(headers: Headers) -> bool:
    """Tell whether what is wrong with one message of a list is to hurt no other."""
    found = {value.strip().lower() for value in headers.getlist(BATCH_VALIDATION)} or {"strict"}
    if found not in ({"strict"}, {"permissive"}):
        raise Refused(400, "validation_failed", f"{BATCH_VALIDATION}: expected strict or permissive")
    return found == {"permissive"}


def wait_s(request: Request) -> int:
    """Return for how many seconds the outcome is waited for."""
    text = request.query_params.get("wait", "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 2 or int(text) > LONGEST_WAIT_S:  # noqa: PLR2004
        raise Refused(400, "validation_failed", f"wait: expected seconds from 0 to {LONGEST_WAIT_S}")
    return int(text)
