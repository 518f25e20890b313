"""What the query of a request asks of a list, and how times are shown."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request

from opensend_milter.servers.web.refusals import Refused

MOST_AT_ONCE, AT_ONCE = 100, 20
_DIGITS = 3


def only(request: Request, *names: str) -> None:
    """Refuse what nobody reads: it would be left out unseen."""
    query = request.query_params
    unknown = sorted(query.keys() - set(names))
    if unknown:
        raise bad(unknown[0], f"expected {', '.join(names[:-1])} or {names[-1]}")


def limit_of(text: str | None) -> int:
    """Return how many are listed at once."""
    if text is None:
        return AT_ONCE
    if not text.isascii() or not text.isdecimal() or len(text) > _DIGITS or not 1 <= int(text) <= MOST_AT_ONCE:
        raise bad("limit", f"expected a number from 1 to {MOST_AT_ONCE}")
    return int(text)


def moment_of(text: str | None) -> datetime | None:
    """Return since when."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise bad("since", "expected a time such as 2026-11-21T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def bad(name: str, message: str) -> Refused:
    """Refuse a parameter, or a field."""
    return Refused(400, "validation_failed", f"{name}: {message}", errors=[{"field": name, "message": message}])


def shown(moment: datetime | None) -> str | None:
    """Write a time as JSON has it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None
