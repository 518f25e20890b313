"""The story of a message, told from what is recorded of it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from opensend_milter.adapters.admin.rows import EmailStatus
from opensend_milter.core.fates import Fate
from opensend_milter.core.next_steps import ADVICE
from opensend_milter.core.recorded import Event, Facts, Listing, Refusal, Taking, Told, Visits, Waiting
from opensend_milter.core.remedies import REMEDIES
from opensend_milter.core.rules import Rule
from opensend_milter.core.story import Story, tell, tell_refusal

ID = "01a22a0c-f6a0-4d1e-9651-279c9f1ee060"
TWO = datetime(2026, 11, 30, 14, 2, tzinfo=UTC)
ANN, BOB, CAROL = "ann@example.net", "bob@example.net", "carol@example.net"
NO_USER = "550 5.1.1 user unknown"


def later(minutes: int) -> datetime:
    return TWO + timedelta(minutes=minutes)


def told(
    *fates: tuple[str, str] | tuple[str, str, str],
    status: str = "sent",
    waiting: Waiting | None = None,
    events: Sequence[Event] = (),
    listings: Mapping[str, Listing] | None = None,
    **others: object,
) -> Story:
    facts = Facts(
        id=ID,
        user_id="shop",
        status=status,
        created_at=TWO,
        scheduled_at=None,
        sender="Shop <orders@shop.example>",
        subject="Your order",
        taking=TAKING,
        fates=[Fate(email=email, status=state, reason=next(iter(why), None)) for email, state, *why in fates],
        noted={},
        waiting=waiting,
        events=events,
        visits=[],
        listings=listings or {},
        beside=False,
    )
    return tell(dataclasses.replace(facts, **others), lambda at: f"{at:%H:%M}")  # type: ignore[arg-type]


TAKING = Taking(
    at=TWO,
    door="smtp",
    client="192.0.2.7",
    tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    key_id="b216e2a6-92a1-487a-aa1f-f0e477060b33",
    key_name="shop",
    sender="bounces@shop.example",
    queue_id="4jd5rb6fZCzRW0C",
    message_id="a@shop.example",
    size=12_345,
)
UNDER_WAY = Waiting(state="waiting", attempts=1, due_at=later(18), announce_at=later(18), uncertain_at=None)


@pytest.mark.parametrize(
    ("fates", "waiting", "verdict"),
    [
        ([(CAROL, "delivered")], None, "delivered to carol@example.net"),
        ([(ANN, "sent"), (BOB, "sent")], None, "sent to 2 of 2"),
        ([(ANN, "queued")], UNDER_WAY, "waiting to be sent to ann@example.net since 14:02"),
        (
            [(ANN, "delivered"), (BOB, "delivered"), (CAROL, "deferred")],
            UNDER_WAY,
            "delivered to 2 of 3; waiting for carol@example.net since 14:02, next attempt 14:20",
        ),
        (
            [(ANN, "failed"), (BOB, "bounced"), (CAROL, "suppressed")],
            None,
            "bounced for bob@example.net; failed for ann@example.net; left out as suppressed: carol@example.net",
        ),
        (
            [(ANN, "uncertain"), (BOB, "complained")],
            Waiting(state="uncertain", attempts=1, due_at=TWO, announce_at=None, uncertain_at=later(3)),
            f"called spam by {BOB}; uncertain for {ANN} since 14:05: nobody knows whether the next hop has it",
        ),
        ([(ANN, "cancelled"), (BOB, "cancelled")], None, "canceled"),
        ([(ANN, "what OpenSend says {next} year")], None, "what OpenSend says {next} year: ann@example.net"),
        ([], None, "sent"),
    ],
)
def test_the_verdict_says_whom_it_reached(fates: list[tuple[str, str]], waiting: Waiting | None, verdict: str) -> None:
    assert told(*fates, waiting=waiting).verdict == verdict


def test_what_is_scheduled_says_for_when() -> None:
    assert told((ANN, "scheduled"), status="scheduled", scheduled_at=later(60)).verdict == "scheduled for 15:02"


def lines(story: Story) -> list[str]:
    return [
        " | ".join(filter(None, [f"{one.at:%H:%M}" if one.at else "", one.what, one.who, one.text]))
        for one in story.timeline
    ]


def test_the_timeline_is_in_order_and_names_each_recipient() -> None:
    partly = Event(
        at=later(1),
        kind="delayed",
        payload={
            "courier": "smtp",
            "reply": "relay.example:25: 250 2.0.0 queued",
            "refused": [{"email": BOB, "reason": NO_USER}],
            "deferred": [{"email": CAROL, "reason": "450 4.2.0 later"}],
            "attempt": 1,
            "next_attempt_at": "2026-11-30T14:20:00+00:00",
        },
        told=(
            Told(
                webhook_id="w", host="shop.example", status="success", attempts=1, code=200, at=later(2), next_at=None
            ),
            Told(webhook_id="v", host="late.example", status="pending", attempts=0, code=None, at=None, next_at=None),
        ),
    )
    bounce = Event(
        at=later(5),
        kind="bounced",
        payload={"recipients": [{"email": ANN, "status": "5.2.2", "diagnostic": "smtp; 552 full"}], "via": "mail"},
    )
    story = told(
        (ANN, "bounced"),
        (BOB, "failed"),
        (CAROL, "deferred"),
        events=[bounce, partly],
        waiting=UNDER_WAY,
        visits=[Visits(kind="opened", count=3, first_at=later(7), last_at=later(9))],
        listings={ANN: Listing(email=ANN, reason="bounced", at=later(6), by_this=True)},
        taking=dataclasses.replace(TAKING, repeats=2, repeated_at=later(4)),
    )
    key = "key shop (b216e2a6-92a1-487a-aa1f-f0e477060b33)"
    assert lines(story) == [
        f"14:02 | taken | by SMTP from 192.0.2.7 with TLSv1.3, {key}, 12,345 octets",
        "14:03 | sent | smtp: relay.example:25: 250 2.0.0 queued, attempt 1, next 14:20",
        f"14:03 | refused | bob@example.net | {NO_USER}",
        "14:03 | put off | carol@example.net | 450 4.2.0 later",
        "14:03 | webhook | email.delayed to late.example: not yet",
        "14:04 | webhook | email.delayed to shop.example: answered 200, attempt 1",
        "14:06 | repeated | 2 times, last 14:06: the client sent it again, and it is stored once",
        "14:07 | bounced | ann@example.net | mail: smtp; 552 full",
        "14:08 | suppressed | ann@example.net | bounced",
        "14:09 | opened | 3 times, last 14:11",
    ]


@pytest.mark.parametrize(
    ("reason", "begins", "command"),
    [
        (NO_USER, "The next hop says that there is no such mailbox", f"suppression add --user shop {ANN}"),
        ("smtp; 550 5.1.10 RESOLVER.ADR.RecipientNotFound", "The next hop says that there is no such mailbox", "supp"),
        ("relay.example:25: 550 5.7.1 no", "The next hop refuses it by its policy", "domain verify shop.example"),
        ("5.7.26", "The next hop refuses it by its policy", "domain verify shop.example"),
        ("552 5.2.2 over quota", "The mailbox is full", ""),
        ("550 no, and no code", "Mend what the next hop said; the message is kept and can be tried again.", "email re"),
        ("550 10.5.1.1 is an address", "Mend what the next hop said; the message is kept", "email retry"),
    ],
)
def test_what_the_next_hop_said_decides_what_is_next(reason: str, begins: str, command: str) -> None:
    (step,) = told((ANN, "failed", reason), status="failed").next_steps
    assert step.text.startswith(begins)
    assert step.command.removeprefix("opensend-milter ").startswith(command)
    assert bool(step.command) == bool(command)


def test_who_is_suppressed_already_need_not_be() -> None:
    listing = Listing(email=ANN, reason="bounced", at=TWO, by_this=True)
    story = told((ANN, "bounced", NO_USER), listings={ANN: listing})
    assert story.next_steps[0].command == ""
    assert "suppressed" in story.next_steps[0].text
    assert story.recipients[0].suppressed == "bounced"


def test_what_cannot_be_tried_again_is_not_offered() -> None:
    """A part of a message that others have, and one whose bytes are gone."""
    alone = told((ANN, "failed", "550 no"), (BOB, "sent"), status="sent")
    gone = told((ANN, "failed", "550 no"), status="failed", taking=dataclasses.replace(TAKING, bytes_dropped_at=TWO))
    assert [step.command for story in (alone, gone) for step in story.next_steps if "retry" in step.command] == []


def test_beside_opensend_no_command_is_named_that_its_worker_does_not_heed() -> None:
    story = told((ANN, "deferred"), (BOB, "scheduled"), waiting=None, beside=True)
    assert [step.command for step in story.next_steps] == ["", ""]
    assert all("its dashboard" in step.text for step in story.next_steps)
    assert lines(story)[1] == "announced | to OpenSend, whose ingester sends it"


def test_the_most_urgent_is_first_and_the_like_are_told_of_together() -> None:
    story = told((ANN, "sent"), (BOB, "uncertain"), (CAROL, "sent"))
    assert [step.about for step in story.next_steps] == [(BOB,), (ANN, CAROL)]
    assert story.next_steps[0].command == f"opensend-milter email mark-sent {ID}"


STATES = [*(one for one in get_args(EmailStatus)), "deferred", "uncertain"]


@pytest.mark.parametrize("status", STATES)
def test_every_state_has_a_verdict_and_a_next_step(status: str) -> None:
    story = told((ANN, status), status=status, waiting=UNDER_WAY, scheduled_at=TWO)
    assert story.verdict != f"{status}: {ANN}"
    assert story.next_steps[0].text
    assert status in ADVICE


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.value)
def test_every_rule_has_a_next_step(rule: Rule) -> None:
    """The same words as docs/reply-codes.md has, and the command filled in."""
    facts = Refusal(
        id="7",
        taking=TAKING,
        rule=rule.value,
        code=550,
        enhanced="5.7.1",
        text="no",
        recipients=["o'neil@example.net"],
        ref=None,
        user_id="shop",
    )
    story = tell_refusal(facts)
    (step,) = story.next_steps
    assert (story.status, story.verdict) == ("refused", f"refused by rule {rule.value}: 550 5.7.1 no")
    assert REMEDIES[rule].mend[1:] in step.text
    assert not re.search(r" (ID|ADDRESS)( |$)", step.command)
    assert not step.command or shlex.split(step.command)[0] == "opensend-milter"


def test_a_rule_of_a_newer_version_is_told_without_a_step() -> None:
    facts = Refusal(
        id="7",
        taking=TAKING,
        rule="new",
        code=550,
        enhanced="5.7.1",
        text="no",
        recipients=[ANN],
        ref=None,
        user_id=None,
    )
    assert tell_refusal(facts).next_steps == ()


def test_an_address_that_looks_like_an_option_or_a_command_is_none() -> None:
    for address in ("-rf@example.net", "$(reboot)@example.net", "o'neil@example.net"):
        (step,) = told((address, "suppressed")).next_steps
        words = shlex.split(step.command)
        assert words[-1] == address
        assert (words[-2] == "--") == address.startswith("-")


def test_who_was_refused_is_told_of_once() -> None:
    said = {"courier": "smtp", "reply": "250 ok", "refused": [{"email": BOB, "reason": NO_USER}]}
    story = told(
        (ANN, "sent"),
        events=[Event(at=later(at), kind=kind, payload=said) for at, kind in ((1, "delayed"), (9, "sent"))],
    )
    assert [(one.at, one.who) for one in story.timeline if one.what == "refused"] == [(later(1), BOB)]


@pytest.mark.parametrize(
    "payload",
    [
        {"recipients": "all", "reply": 7, "attempt": "x", "next_attempt_at": "soon", "courier": None},
        {"recipients": [None, 7, {"email": ["x"]}, {"emailAddress": BOB, "diagnosticCode": "no"}]},
        {"refused": {"email": ANN}, "deferred": [[]], "next_retry_at": "2026-11-30T14:20:00"},
    ],
)
def test_an_event_that_others_wrote_is_read_as_far_as_it_goes(payload: dict[str, object]) -> None:
    story = told((ANN, "bounced"), events=[Event(at=later(1), kind="bounced", payload=payload)])
    assert {one.what for one in story.timeline} == {"taken", "bounced"}


def test_a_long_list_of_recipients_is_bounded() -> None:
    said = [{"email": f"{number}@example.net", "diagnostic": "x" * 9_999} for number in range(9_999)]
    story = told((ANN, "bounced"), events=[Event(at=later(1), kind="bounced", payload={"recipients": said})])
    assert len(story.timeline) == 51
    assert max(len(one.text) for one in story.timeline) == 1_000
