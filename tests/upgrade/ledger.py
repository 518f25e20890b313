"""What clients were answered, and what that says of the messages that there must be: each once, no more, no fewer."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["accepted", "put off", "wrong"]
SHOWN_CHARACTERS = 60
_TOKEN = re.compile(r"up-[a-z0-9]+-[a-z]+-\d{6}")


def token(who: str, kind: str, number: int) -> str:
    """Name a message, in its subject and its Message-ID; names of a kind are of one length."""
    return f"up-{who}-{kind}-{number:06}"


def token_in(text: str) -> str | None:
    """Return the first name of a message in a text."""
    found = _TOKEN.search(text)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client heard; `code` is 0 where it heard nothing."""

    verdict: Verdict
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Try:
    """One message handed in once."""

    token: str
    answer: Answer
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What clients noticed in a time."""

    took_s: float
    accepted: int
    put_off: int
    longest_s: float
    """That a message which ended in it had to wait, from its first try to its 250."""


@dataclass(slots=True)
class Ledger:
    """All tries, by any number of clients."""

    tries: list[Try] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, one: Try) -> None:
        with self._lock:
            self.tries.append(one)

    def accepted(self) -> set[str]:
        """Name the messages that are ours."""
        return {one.token for one in self._noted() if one.answer.verdict == "accepted"}

    def accepted_of(self, who: str) -> int:
        """Count those of one client."""
        return sum(one.startswith(f"up-{who}-") for one in self.accepted())

    def given_up(self) -> set[str]:
        """Name the messages that no try brought in."""
        return {one.token for one in self._noted()} - self.accepted()

    def wrong(self) -> list[str]:
        """Return each answer for good, which nothing that was sent deserved."""
        return [
            f"{one.token}: {one.answer.code} {one.answer.text}"
            for one in self._noted()
            if one.answer.verdict == "wrong"
        ]

    def refusals(self) -> Counter[str]:
        """Count what put clients off."""
        put_off = (one.answer for one in self._noted() if one.answer.verdict == "put off")
        return Counter(f"{answer.code or 'no answer'}: {answer.text[:SHOWN_CHARACTERS]}" for answer in put_off)

    def between(self, began_at: float, ended_at: float) -> Span:
        """Sum up what ended in a time."""
        first: dict[str, float] = {}
        accepted, put_off, longest_s = 0, 0, 0.0
        for one in self._noted():
            first.setdefault(one.token, one.began_at)
            if began_at <= one.ended_at < ended_at:
                is_accepted = one.answer.verdict == "accepted"
                accepted += is_accepted
                put_off += one.answer.verdict == "put off"
                longest_s = max(longest_s, one.ended_at - first[one.token])
        return Span(took_s=ended_at - began_at, accepted=accepted, put_off=put_off, longest_s=longest_s)

    def _noted(self) -> list[Try]:
        with self._lock:
            return list(self.tries)


def now() -> float:
    """Return the clock of all tries."""
    return time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Messages that must be there, against rows and deliveries."""

    lost: tuple[str, ...]
    twice: tuple[str, ...]
    unasked: tuple[str, ...]
    """Delivered, and nobody was to have it."""


def settle(*, taken: Collection[str], due: Collection[str], rows: Iterable[str], delivered: Iterable[str]) -> Account:
    """Hold what was `taken` to its rows, and what is `due` to what came out."""
    stored, out = Counter(rows), Counter(delivered)
    return Account(
        lost=tuple(sorted({*(set(taken) - stored.keys()), *(set(due) - out.keys())})),
        twice=tuple(sorted(one for counted in (stored, out) for one, times in counted.items() if times > 1)),
        unasked=tuple(sorted(out.keys() - set(due))),
    )
