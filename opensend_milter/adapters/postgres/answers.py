"""What is written of the recipients of one attempt, as parameters of the statements that record it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from opensend_milter.core import next_hop
from opensend_milter.core.feedback import payload
from opensend_milter.core.model import Address, Answers, Job, Sent

RECORDED_CHARACTERS = 1_000


def told(sent: Sent) -> dict[str, object]:
    """Tell in an event what the next hop said."""
    found: dict[str, object] = {"courier": sent.courier, "reply": sent.reply, "refused": listed(sent.refused)}
    if sent.deferred:
        found["deferred"] = listed(sent.deferred)
    if sent.provider_id:
        found["provider_id"] = sent.provider_id
    return found


def listed(recipients: Sequence[tuple[Address, str]]) -> list[dict[str, str]]:
    """Tell in an event of recipients, each with a reason."""
    return [{"email": address, "reason": reason} for address, reason in recipients]


def results(
    refused: Sequence[tuple[Address, str]] = (), deferred: Sequence[tuple[Address, str]] = ()
) -> dict[str, list[str]]:
    """Return whose fate is another than the message's."""
    # Of an address named twice, the later: ON CONFLICT may not touch a row twice.
    found = {
        text(address): ("bounced" if next_hop.is_unknown(why) else "refused", text(why)) for address, why in refused
    }
    found |= {text(address): ("deferred", text(why)) for address, why in deferred}
    return {
        "addresses": list(found),
        "outcomes": [outcome for outcome, _ in found.values()],
        "reasons": [reason for _, reason in found.values()],
    }


def answered(job: Job, answers: Answers, count: int, **more: object) -> dict[str, Any]:
    """Return how many recipients were answered for, by whose courier, and reports of those who are unknown.

    `more` stands in the first report.
    """
    found = next_hop.reports(job, answers)
    written = [payload(report) | (more if place == 0 else {}) for place, report in enumerate(found)]
    return {
        "courier": answers.courier,
        "answered": count,
        "unknown": len(found),
        "report_ids": [report.source_id for report in found],
        "reports": [json.dumps(clean(one)) for one in written],
    }


NOBODY = {"courier": "", "answered": 0, "unknown": 0, "report_ids": [], "reports": []}
"""`answered` where no next hop was asked."""


def text(given: str) -> str:
    """Make a foreign text one that Postgres takes, and not longer than anybody reads."""
    return given.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")[:RECORDED_CHARACTERS]


def clean(value: object) -> object:
    """Make all texts of a payload such."""
    match value:
        case str():
            return text(value)
        case dict():
            return {name: clean(one) for name, one in value.items()}
        case list():
            return [clean(one) for one in value]
        case _:
            return value
