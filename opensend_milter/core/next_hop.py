"""What a next hop says: its words taken apart, and a report of each recipient whom it does not know."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from opensend_milter.core.feedback import Recipient, Report
from opensend_milter.core.model import Address, Answers, Job

INLINE = "inline"
"""By what way such a report came: the next hop refused the recipient while it was asked."""
LANE_RECIPIENTS = 50
"""So many of a lane's last recipients tell whether its next hop is to be believed."""
LANE_FOR = timedelta(days=1)
"""And no older ones: a relay is mended within a day, and a lane may be slow."""
_MOST_UNKNOWN = 1 / 5
UNKNOWN_CODES = frozenset({"5.1.1", "5.1.6", "5.1.10"})
"""No such mailbox, moved without a new address, no mail taken for that domain (RFC 3463, 3.2; RFC 7505, 4.2)."""
# At the beginning only: what was answered to the message as a whole stands behind what was asked.
_NEVER = re.compile(r"5[0-9]{2} (5\.1\.[0-9]{1,3})(?![0-9.])")
# Before it may stand what was asked, or the type of a diagnostic code (RFC 3464, 2.3.6).
_REPLY = re.compile(
    r"(?:\A|[:;] )([2-5][0-9]{2})(?: ([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.]))?(?: (.*))?\Z", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class HopReply:
    """One answer, taken apart."""

    code: int
    """SMTP's, or HTTP's of a service that is spoken to so."""
    enhanced: str
    """RFC 3463; empty where there is none."""
    text: str


def hop_reply(said: str) -> HopReply | None:
    """Find the answer in what was recorded of it; nothing, where the next hop did not answer."""
    found = _REPLY.search(said)
    return HopReply(int(found[1]), found[2] or "", found[3] or "") if found else None


def is_unknown(said: str) -> bool:
    """Tell whether what a recipient heard says for good that there is no such recipient."""
    found = _NEVER.match(said)
    return found is not None and found[1] in UNKNOWN_CODES


def is_relay_broken(recipients: int, unknown: int) -> bool:
    """Tell whether a lane's last recipients are unknown so often that it says more of its relay than of them."""
    return unknown > max(recipients, LANE_RECIPIENTS) * _MOST_UNKNOWN


def reports(job: Job, answers: Answers) -> list[Report]:
    """Make a report of each recipient of this attempt whom the next hop does not know."""
    return list(_reports(job, answers))


def _reports(job: Job, answers: Answers) -> Iterable[Report]:
    asked = set(job.recipients)
    for address, said in dict(answers.refused).items():
        reply = hop_reply(said)
        if address in asked and reply and is_unknown(said):
            yield Report(
                kind="bounced",
                source_id=_source_id(job, address),
                email_id=job.email_id,
                recipients=(Recipient(names=(address,), status=reply.enhanced, diagnostic=said),),
                permanent=True,
                reason=said,
                via=INLINE,
                details={"courier": answers.courier, "host": answers.host, "code": str(reply.code)},
            )


def _source_id(job: Job, address: Address) -> str:
    """Name it: once for each time that a person has the message tried again."""
    digest = hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()
    return f"{INLINE}:{job.email_id}:{job.rounds}:{digest}"
