"""When a domain is verified: what follows for its status from how its ownership record stands."""

from __future__ import annotations

from typing import NamedTuple

from opensend_milter.core.dns_records import State


class Settled(NamedTuple):
    """The status that a domain has from now on, and what to say of it."""

    status: str
    note: str


def settled(status: str, proof: State, *, withdraw: bool) -> Settled:
    """Judge a domain by its status so far and its proof; `withdraw`: one without a proof may not send any more."""
    is_verified = status == "verified"
    match proof:
        case State.NOT_NEEDED:
            return Settled(status, "" if is_verified else "verify it in OpenSend's dashboard")
        case State.UNKNOWN:
            return Settled(status, "DNS did not answer: nothing was changed")
        case State.FOUND:
            return Settled("verified", "" if is_verified else "verified now")
        case State.MISSING | State.WRONG if not is_verified:
            return Settled(status, "")
        case State.MISSING | State.WRONG if withdraw:
            return Settled("pending", "withdrawn: its mail is refused from now on")
        case State.MISSING | State.WRONG:
            note = "warning: verified, and without its ownership record (vouched for, or the record is gone)"
            return Settled(status, note)
