"""What a next hop says: taken apart, and whom it does not know."""

from __future__ import annotations

import pytest

from opensend_milter.core.model import Address, Answers
from opensend_milter.core.next_hop import HopReply, hop_reply, is_relay_broken, is_unknown, reports
from tests.jobs import job
from tests.linear import assert_linear

ANN, BOB, CAT = (Address(f"{name}@example.net") for name in ("ann", "bob", "cat"))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("250 2.0.0 Ok: queued as 4X", HopReply(250, "2.0.0", "Ok: queued as 4X")),
        ("550 5.1.1 <a@b>: unknown: 551 moved", HopReply(550, "5.1.1", "<a@b>: unknown: 551 moved")),
        ("550 no", HopReply(550, "", "no")),
        ("450", HopReply(450, "", "")),
        ("no recipient taken: 450 4.2.2 full", HopReply(450, "4.2.2", "full")),
        ("given up after 12 attempts: RCPT TO: 451 4.3.0 later", HopReply(451, "4.3.0", "later")),
        ("smtp; 550 5.1.1 no such user", HopReply(550, "5.1.1", "no such user")),
        ("relay:587: 454 4.7.0 busy", HopReply(454, "4.7.0", "busy")),
        ("200 0102018c", HopReply(200, "", "0102018c")),
        ("550 5.1.10 RESOLVER.ADR", HopReply(550, "5.1.10", "RESOLVER.ADR")),
        ("550 5.1.1.9 odd", HopReply(550, "", "5.1.1.9 odd")),
        ("after the final dot: TimeoutError: timed out", None),
        ("sendmail: exit 67: user unknown", None),
        ("1550 5.1.1", None),
        ("", None),
    ],
)
def test_an_answer_is_found_in_what_was_recorded_of_it(said: str, found: HopReply | None) -> None:
    assert hop_reply(said) == found


@pytest.mark.parametrize("code", ["5.1.1", "5.1.6", "5.1.10"])
def test_who_is_unknown(code: str) -> None:
    assert is_unknown(f"550 {code} <a@b> no")


@pytest.mark.parametrize(
    "said",
    [
        "550 no such user", "550 5.1.2 no such host", "550 5.1.11 x", "550 5.1.1.1 x", "550 5.1.3 syntax",
        "550 5.2.1 off", "550 5.7.1 policy: 5.1.1", "450 5.1.1 later", "550 4.1.1 odd", "the message: 550 5.1.1 x",
        "MAIL FROM: 550 5.1.1 x", "given up after 12 attempts: 550 5.1.1 x", "",
    ],
)  # fmt: skip
def test_who_is_not(said: str) -> None:
    """A code that says something else, or nothing for good; and what was said of the message as a whole."""
    assert not is_unknown(said)


@pytest.mark.parametrize(
    ("recipients", "unknown", "broken"),
    [
        (0, 0, False), (1, 1, False), (10, 10, False), (11, 11, True), (50, 10, False), (50, 11, True), (50, 50, True),
        (99, 19, False), (99, 20, True), (1_000, 200, False), (1_000, 201, True),
    ],
)  # fmt: skip
def test_a_relay_is_broken_that_knows_too_few(recipients: int, unknown: int, broken: bool) -> None:  # noqa: FBT001
    """More than a fifth of the last fifty; a new lane has as many to spare as an old one."""
    assert is_relay_broken(recipients, unknown) == broken


def test_who_was_asked_and_is_unknown_is_reported() -> None:
    """Once, with all that makes it evidence; not whom an earlier attempt has asked for."""
    answers = Answers(
        courier="smtp",
        host="mx:25",
        refused=((ANN, "550 5.1.1 no"), (BOB, "550 5.7.1 no"), (CAT, "550 5.1.1 no"), (ANN, "550 5.1.1 no")),
    )
    (found,) = reports(job(recipients=(ANN, BOB)), answers)
    assert (found.kind, found.permanent, found.via, found.reason) == ("bounced", True, "inline", "550 5.1.1 no")
    assert found.recipients[0].names == (ANN,)
    assert (found.recipients[0].status, found.recipients[0].diagnostic) == ("5.1.1", "550 5.1.1 no")
    assert found.details == {"courier": "smtp", "host": "mx:25", "code": "550"}
    assert ANN not in found.source_id
    (again,) = reports(job(recipients=(ANN,), attempts=3), answers)
    assert again.source_id == found.source_id, "another attempt says the same"
    (anew,) = reports(job(recipients=(ANN,), rounds=1), answers)
    assert anew.source_id != found.source_id, "a person had it tried again"


@pytest.mark.parametrize("piece", ["550 ", ": 550 ", ": 550x", "5.1.1 ", "; ", ": 250 2."])
def test_an_answer_is_read_in_linear_time(piece: str) -> None:
    """A million characters of it: what is not linear does not end."""
    assert_linear(lambda size: hop_reply(piece * size), 250_000)
