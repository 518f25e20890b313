"""How good a state is: the mark that stands beside its name, so that it is not told by colour alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Mark = Literal["good", "bad", "wait", "unsure", "off"]

_MARKS: Mapping[str, Mark] = {
    **dict.fromkeys(("delivered", "sent", "opened", "clicked", "verified", "active", "ok", "found", "success"), "good"),
    **dict.fromkeys(
        (
            "failed",
            "bounced",
            "complained",
            "problem",
            "refused",
            "rejected",
            "dead",
            "dead_letter",
            "wrong",
            "missing",
        ),
        "bad",
    ),
    **dict.fromkeys(
        ("queued", "scheduled", "processing", "deferred", "put off", "delivery_delayed", "pending"), "wait"
    ),
    **dict.fromkeys(("uncertain", "warning", "unknown"), "unsure"),
}


def mark_of(state: str) -> Mark:
    """Return the mark of a state; one that is neither good nor bad, or not known, is `off`."""
    return _MARKS.get(state, "off")
