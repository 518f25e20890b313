"""What to do next about a message: for every state that a recipient may be in, and for every rule, in one place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from opensend_milter.core.remedies import remedy_of, sentence

_ENHANCED = re.compile(r"(?<![\d.])[245]\.\d{1,3}\.\d{1,3}(?!\.?\d)")
_COMMAND = re.compile(r"`(opensend-milter [^`]+)`")
DEFAULT_USER = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One recipient, and what decides what can be done."""

    email_id: str
    recipient: str
    user_id: str | None
    domain: str
    """Of From."""
    status: str
    reason: str
    is_listed: bool
    """On the suppression list now."""
    may_retry: bool
    """The whole message failed, and its bytes are kept."""
    beside: bool
    """OpenSend's own worker delivers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A sentence, and the command that goes with it; empty: there is none."""

    text: str
    command: str = ""
    about: tuple[str, ...] = ()
    """The recipients that it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A step of whoever may be in this case, its command with gaps."""

    text: str
    command: str = ""
    ours: bool = False
    """Only our own worker heeds the command."""


_OURS_ONLY = " OpenSend delivers here: look at its dashboard, and at its ingester's log."
_ALL_WELL = Advice(text="Nothing: the recipient's server has it. What is not seen there is in a spam folder.")
ADVICE: Mapping[str, Advice] = {
    "uncertain": Advice(
        text="Ask the next hop whether it has the message, by its Message-ID, and say so; `email retry` instead may"
        " deliver it twice.",
        command="opensend-milter email mark-sent {id}",
        ours=True,
    ),
    "failed": Advice(text="Mend what the next hop said, and send the message anew."),
    "bounced": Advice(text="Mend what came back, and send the message anew."),
    "complained": Advice(text="The recipient called it spam: send this address nothing more."),
    "suppressed": Advice(
        text="The address is on the suppression list: once it is known to be good, take it off and send anew.",
        command="opensend-milter suppression remove{user} {address}",
    ),
    "deferred": Advice(
        text="It is tried again by itself; where what the next hop said is mended, it need not wait.",
        command="opensend-milter email retry {id}",
        ours=True,
    ),
    "queued": Advice(
        text="The worker takes it up next; where that lasts, look at the worker.",
        command="opensend-milter doctor --only outbox --only worker --only courier",
        ours=True,
    ),
    "scheduled": Advice(
        text="It waits for its time; until then it can be taken back.",
        command="opensend-milter email cancel {id}",
        ours=True,
    ),
    "processing": Advice(text="It is being sent: watch it.", command="opensend-milter why {id} --follow"),
    "sent": Advice(
        text="The next hop has it, and nothing has come back: search its log for the Message-ID, then look at spam"
        " folders, SPF, DKIM and DMARC.",
        command="opensend-milter domain verify {domain}",
    ),
    "delivered": _ALL_WELL,
    "canceled": Advice(text="It was taken back before it began: send it anew."),
}
"""By a recipient's state, the most urgent first."""
_NO_SUCH_USER = Advice(
    text="The next hop says that there is no such mailbox: ask for the right address, and suppress this one.",
    command="opensend-milter suppression add{user} {address}",
)
_SAID: tuple[tuple[str, Advice], ...] = (
    ("5.1.1 5.1.6 5.1.10", _NO_SUCH_USER),
    ("5.1.2 5.4.4", Advice(text="The domain takes no mail, or there is no such domain: is the address right?")),
    ("5.2.1", Advice(text="The mailbox is closed for now: reach the recipient by another way.")),
    ("5.2.2 4.2.2", Advice(text="The mailbox is full: reach the recipient by another way, then send anew.")),
    ("5.2.3 5.3.4", Advice(text="It is too large for the next hop: send less, or a link.")),
    ("5.6", Advice(text="The next hop does not take what it is made of: send a simpler message.")),
    (
        "5.7",
        Advice(
            text="The next hop refuses it by its policy: read what it said, and look at SPF, DKIM and DMARC of the From"
            " domain.",
            command="opensend-milter domain verify {domain}",
        ),
    ),
)
"""By enhanced code (RFC 3463), where the next hop or a bounce gave one; a code of two numbers is all that begin so."""
_LISTED = Advice(
    text="The next hop says that there is no such mailbox: ask for the right address. This one is suppressed."
)
_RETRY = Advice(
    text="Mend what the next hop said; the message is kept and can be tried again.",
    command="opensend-milter email retry {id}",
    ours=True,
)


def steps(cases: Sequence[Case]) -> Iterator[Step]:
    """Say what to do, the most urgent first; who is in the same case is told of together."""
    found: dict[tuple[str, str], Step] = {}
    for case in sorted(cases, key=lambda one: _place(one.status)):
        step = _filled(_advice(case), case)
        key = step.text, step.command
        found[key] = replace(step, about=(*found[key].about, case.recipient) if key in found else (case.recipient,))
    # Of whom all is well with nothing is said beside others.
    yield from [step for step in found.values() if step.text != _ALL_WELL.text] or found.values()


def cause_of(rule: str) -> str:
    """Say what a rule is about; nothing where only a newer version knows it."""
    remedy = remedy_of(rule)
    return sentence(remedy.cause) if remedy else ""


def of_refusal(rule: str, key_id: str, user_id: str | None, recipients: Sequence[str]) -> Iterator[Step]:
    """Say what mends what a rule refused; nothing where only a newer version knows the rule."""
    if remedy := remedy_of(rule):
        found = _COMMAND.search(remedy.mend)
        command = found[1] if found else ""
        command = command.replace(" ID ", f" {shlex.quote(key_id)} ") if key_id else command
        if len(recipients) == 1:
            command = command.replace(" ADDRESS", f"{_of_user(user_id)} {_word(recipients[0])}")
        yield Step(text=sentence(remedy.mend), command=command)


def _place(status: str) -> int:
    return list(ADVICE).index(status) if status in ADVICE else len(ADVICE)


def _advice(case: Case) -> Advice:
    if case.status in {"failed", "bounced"}:
        said = _ENHANCED.search(case.reason)
        code = said[0] if said else ""
        found = next((one for codes, one in _SAID if any(_begins(code, start) for start in codes.split())), None)
        if found is _NO_SUCH_USER and case.is_listed:
            return _LISTED
        if found is not None:
            return found
        if case.status == "failed" and case.may_retry:
            return _RETRY
    return ADVICE.get(case.status, Advice(text="Look at what happened last."))


def _begins(code: str, start: str) -> bool:
    return code == start or (code.startswith(f"{start}.") and start.count(".") == 1)


def _filled(advice: Advice, case: Case) -> Step:
    if advice.ours and case.beside:
        return Step(text=advice.text + _OURS_ONLY)
    return Step(
        text=advice.text,
        command=advice.command.format(
            id=case.email_id, user=_of_user(case.user_id), address=_word(case.recipient), domain=_word(case.domain)
        ),
    )


def _word(text: str) -> str:
    """Quote a text for a shell; what begins like an option comes last, and is told apart from one."""
    return f"-- {shlex.quote(text)}" if text.startswith("-") else shlex.quote(text)


def _of_user(user_id: str | None) -> str:
    return f" --user {shlex.quote(user_id)}" if user_id and user_id != DEFAULT_USER else ""
