"""What somebody may do about a message from the console, and in which words it is said what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Act = Literal["retry", "cancel", "suppress"]
Stood = Literal["failed", "waiting", "uncertain"]
"""How a message stood: it was over and done with, or its job was in this state."""
Was = Literal[Stood, "reachable", "suppressed"]
"""How the message stood, or the recipient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What is to be done, and about what."""

    act: Act
    email_id: str
    address: str = ""
    """The recipient to be suppressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What comes of it: it is done, from this state, or there is a reason why not."""

    was: Was | None = None
    why_not: str = ""


WORDS: Mapping[tuple[Act, Was], str] = {
    ("retry", "failed"): "Nobody has it. Its delivery begins anew, to all its recipients.",
    ("retry", "waiting"): "It waits for its next attempt, which is made at once.",
    ("retry", "uncertain"): "Nobody knows whether the next hop has it. It is sent again, and may arrive twice.",
    ("cancel", "waiting"): "Whoever does not have it yet will not get it. No webhook is called, and there is no way"
    " back.",
    ("suppress", "reachable"): "From now on nothing that the user of this message sends is sent to this recipient,"
    " until `opensend-milter suppression remove` takes the address off the list.",
    ("suppress", "suppressed"): "The recipient is suppressed already; from now on it is said to be by hand.",
}
"""What happens, of all that can be done."""
