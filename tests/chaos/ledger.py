"""What clients were told, and whether what became of their mail agrees with it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["taken", "put off", "unheard", "wrong"]
"""`unheard`: all was said, and no answer came; `wrong`: a refusal for good, where all that was wrong is ours."""
Fault = Literal["lost", "twice", "unexplained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One try of a client and what it heard."""

    client: str
    mark: str
    """By which a message is known everywhere: it stands in its subject."""
    outcome: Outcome
    answer: str
    began_at: float
    ended_at: float
    repeatable: bool = True
    """Sent again it is the same message: it has a Message-ID or an Idempotency-Key."""


@dataclass(slots=True)
class Message:
    """All that clients were told of one message."""

    window: Window
    """When it was taken; until then, when it was tried last."""
    repeatable: bool
    taken: bool = False
    doubts: int = 0
    """Tries after which nobody knows whether it was stored, of one that is another message when sent again."""


@dataclass(slots=True)
class Window:
    """One fault and what clients heard from its beginning to that of the next."""

    kind: str
    is_long: bool = False
    answers: int = 0
    accepted: int = 0
    wrong: list[Told] = field(default_factory=list)
    refused_s: float = 0.0
    """The longest that one client waited for a good answer, from the first try that had none."""
    refused_with: str = ""
    """Who that was, and what it heard last before."""
    whole_s: float | None = None
    """From healing to a good answer for each client; None: that never came."""


@dataclass(slots=True)
class _Client:
    good_from: float = 0.0
    """When the last try began that was taken."""
    good_at: float = 0.0
    refused_from: float | None = None
    refused_with: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Became:
    """What is there at the end."""

    rows: Mapping[str, Sequence[str]]
    """For each mark the states of its rows; `refused` is one that the next hop refused for good."""
    delivered: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that must not be."""

    fault: Fault
    kind: str
    mark: str
    what: str


SETTLED = frozenset({"sent", "uncertain", "refused"})


class Ledger:
    """Written by all clients, read by the conductor."""

    def __init__(self, *clients: str) -> None:
        self.windows = [Window("before")]
        self.messages: dict[str, Message] = {}
        self._clients = {name: _Client() for name in clients}
        self._changed = threading.Condition()

    @property
    def window(self) -> Window:
        """The one that is open."""
        return self.windows[-1]

    def open(self, kind: str, *, is_long: bool = False) -> Window:
        """Begin with another fault."""
        with self._changed:
            self.windows.append(Window(kind, is_long))
            return self.window

    def withdraw(self, window: Window) -> None:
        """Take back one that did not come about; what was heard in it counts for the one before."""
        with self._changed:
            self.windows.remove(window)
            self.window.answers += window.answers
            self.window.accepted += window.accepted
            self.window.wrong += window.wrong
            for message in self.messages.values():
                if message.window is window:
                    message.window = self.window

    def note(self, told: Told) -> None:
        """Put down one answer."""
        with self._changed:
            window = self.window
            message = self.messages.setdefault(told.mark, Message(window, told.repeatable))
            if not message.taken:
                message.window = window
            window.answers += 1
            client = self._clients[told.client]
            if told.outcome == "taken":
                window.accepted += not message.taken
                message.taken = True
                since = told.began_at if client.refused_from is None else client.refused_from
                if told.ended_at - since > window.refused_s:
                    window.refused_s, window.refused_with = told.ended_at - since, client.refused_with
                client.good_from, client.good_at, client.refused_from = told.began_at, told.ended_at, None
                client.refused_with = ""
            else:
                client.refused_with = f"{told.client} heard {told.answer}"
                message.doubts += not told.repeatable
                if client.refused_from is None:
                    client.refused_from = told.began_at
            if told.outcome == "wrong":
                window.wrong.append(told)
            self._changed.notify_all()

    def await_true(self, condition: Callable[[], bool], longest_s: float) -> bool:
        """Wait until an answer makes it true, for so long at most; tell whether it is."""
        with self._changed:
            return self._changed.wait_for(condition, longest_s)

    def await_whole(self, healed_at: float, longest_s: float) -> float | None:
        """Wait until each client had a good answer to a try begun since; return after how many seconds the last had."""
        first: dict[str, float] = {}

        def whole() -> bool:
            # Noted as it comes: of a client that goes on well only the latest answer is known.
            for name, client in self._clients.items():
                if client.good_from >= healed_at:
                    first.setdefault(name, client.good_at)
            return len(first) == len(self._clients)

        return max(first.values()) - healed_at if self.await_true(whole, longest_s) else None

    def not_whole(self, healed_at: float) -> list[str]:
        """Name the clients that had no good answer since."""
        return [name for name, client in self._clients.items() if client.good_from < healed_at]


def audit(ledger: Ledger, became: Became) -> Iterator[Finding]:
    """Compare what was told with what there is."""
    for mark, message in ledger.messages.items():
        states, copies = became.rows.get(mark, ()), became.delivered.get(mark, 0)
        for fault, what in _faults(message, states, copies):
            yield Finding(fault=fault, kind=message.window.kind, mark=mark, what=what)
    for mark in (became.rows.keys() | became.delivered.keys()) - ledger.messages.keys():
        yield Finding(fault="unexplained", kind="", mark=mark, what="nobody sent it")


def _faults(message: Message, states: Sequence[str], copies: int) -> Iterator[tuple[Fault, str]]:
    count = Counter(states)
    if message.taken and not states:
        yield "lost", "taken, and there is no row"
    if stuck := [state for state in states if state not in SETTLED]:
        yield "lost", f"never left: {', '.join(stuck)}"
    if copies < count["sent"]:
        yield "lost", f"{count['sent']} sent, {copies} delivered"
    if len(states) > 1 + (0 if message.repeatable else message.doubts):
        yield "twice", f"{len(states)} rows"
    if copies > count["sent"] + count["uncertain"] + len(stuck):
        yield "twice", f"{len(states)} rows ({', '.join(states)}), {copies} delivered"
    if not message.taken and (message.repeatable or not message.doubts):
        yield "unexplained", f"never taken, however often it was tried; {len(states)} rows"
