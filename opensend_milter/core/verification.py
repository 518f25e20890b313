"""When a domain is verified: what follows for its status from how its ownership record stands."""

from __future__ import annotations

from typing import NamedTuple

from opensend_milter.core.dns_records import RecordState


class Settled(NamedTuple):
    """The status that a domain has from now on, and what to say of it."""

    status: str
    note: str


def settled(status: str, proof: RecordState, *, withdraw: bool) -> Settled:
    """Judge a domain by its status so far and its proof; `withdraw`: one without a proof may not send any more."""
    is_verified = status == "verified"
    match proof:
        case RecordState.NOT_NEEDED:
            return Settled(status, "" if is_verified else "verify it in OpenSend's dashboard")
        case RecordState.UNKNOWN:
            return Settled(status, "DNS did not answer: nothing was changed")
        case RecordState.FOUND:
            return Settled("verified", "" if is_verified else "verified now")
        case RecordState.MISSING | RecordState.WRONG if not is_verified:
            return Settled(status, "")
        case RecordState.MISSING | RecordState.WRONG if withdraw:
            return Settled("pending", "withdrawn: its mail is refused from now on")
        case RecordState.MISSING | RecordState.WRONG:
            note = "warning: verified, and without its ownership record (vouched for, or the record is gone)"
            return Settled(status, note)
