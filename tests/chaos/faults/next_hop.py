"""The next hop refuses, hangs or hangs up, at one step after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

from tests.chaos.faults.harm import Blow, Harm
from tests.chaos.stand import REFUSED, Stand
from tests.smtp_sink import DROP, HOLD, STALL

STEPS = ("connect", "EHLO", "MAIL", "RCPT", "DATA", "body", ".")
ANSWERED = ("EHLO", "MAIL", "RCPT", "DATA", ".")
LATER = "451 4.7.1 not now"


def saying(answer: str, steps: Sequence[str]) -> Harm:
    """Answer so at a step that chance chooses; each blow chooses anew."""

    @contextmanager
    def harm(stand: Stand, chance: Random) -> Iterator[Blow]:
        sink = stand.next_hop
        sink.release.clear()

        def blow() -> None:
            # A body that nobody reads to its end can only be hung up on.
            sink.answers = {chance.choice(steps): answer}

        blow()
        try:
            yield blow
        finally:
            sink.answers = {}
            sink.release.set()

    return harm


FAULTS: dict[str, Harm] = {
    "next-hop-later": saying(LATER, ANSWERED),
    "next-hop-never": saying(REFUSED, ("MAIL", "RCPT", ".")),
    "next-hop-hangs": saying(STALL, STEPS),
    "next-hop-hangs-up": saying(DROP, STEPS),
    "next-hop-answers-late": saying(HOLD, (".",)),
    "next-hop-away": saying(DROP, ("connect",)),
}
