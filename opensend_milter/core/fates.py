"""What became of each recipient of a message: worked out in one place, so that every door says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_OF_ONE = frozenset({"delivered", "bounced", "complained"})
"""What is heard of single recipients, though the email's row has room for one word."""
_BY_RESULT = {"refused": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Where one recipient stands."""

    email: str
    status: str
    """As OpenSend says it of an email, or deferred, uncertain, suppressed."""
    reason: str | None = None
    """What was said of it, by the next hop or by whoever reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was recorded of one recipient."""

    outcome: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A delivery that is not finished."""

    state: str
    attempts: int
    left: Sequence[str] | None
    """Who is still to get it; None: all."""
    reason: str | None
    """Why the last attempt was none."""


def fates(
    *,
    status: str,
    recipients: Sequence[str],
    results: Mapping[str, Result],
    left_out: Mapping[str, str],
    work: Work | None,
) -> tuple[Fate, ...]:
    """Say where each recipient stands, in the order of the envelope; those who were left out come last.

    `status` is the email's, in OpenSend's words. Without `work` the delivery is finished, or not ours.
    """
    found = []
    for email in recipients:
        result = results.get(email)
        if result and result.outcome != "deferred":
            found.append(Fate(email=email, status=_BY_RESULT.get(result.outcome, result.outcome), reason=result.reason))
        elif work is None:
            found.append(Fate(email=email, status="sent" if status in _OF_ONE and results else status))
        elif work.left is not None and email not in work.left:
            found.append(Fate(email=email, status="sent"))
        else:
            found.append(_at_work(email, status, work, result))
    suppressed = (Fate(email=email, status="suppressed", reason=why) for email, why in left_out.items())
    return (*found, *suppressed)


def _at_work(email: str, status: str, work: Work, result: Result | None) -> Fate:
    """Say where one stands who is still to get it."""
    reason = result.reason if result else work.reason
    if work.state == "uncertain":
        return Fate(email=email, status="uncertain", reason=work.reason)
    if work.state == "attempting":
        return Fate(email=email, status="processing", reason=reason)
    if result or work.attempts:
        return Fate(email=email, status="deferred", reason=reason)
    return Fate(email=email, status=status)
