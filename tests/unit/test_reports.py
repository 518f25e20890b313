"""What SES says is read as it means it, and each kind of report changes what it should and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.feedback import (
    Affected,
    Known,
    Recipient,
    Report,
    ReportMalformed,
    Standing,
    effects,
    of_link,
    payload,
    report_of,
)
from opensend_milter.core.model import Address, EmailId, UserId
from opensend_milter.core.ses_report import ses_report
from tests.linear import assert_linear

ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
OTHER = EmailId("0198c5a2-7f00-7abc-8def-0123456789ac")
MAIL: dict[str, Any] = {"timestamp": "2026-11-21T10:00:00Z", "messageId": "0100-ses", "tags": {"X-Entity-ID": [ID]}}
NO_MAILS: list[object] = [[], "x", None, {"messageId": 3}]
BOUNCED = [{"emailAddress": "to@example.net", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 unknown"}]


def event(kind: str, **section: Any) -> str:
    name = {"DeliveryDelay": "deliveryDelay", "Rendering Failure": "failure"}.get(kind, kind.lower())
    return json.dumps({"eventType": kind, "mail": MAIL, name: section})


def notification(kind: str, mail: dict[str, Any], **section: Any) -> str:
    return json.dumps({"notificationType": kind, "mail": mail, kind.lower(): section})


def report(**changes: Any) -> Report:
    standard: dict[str, Any] = {"kind": "delivered", "source_id": "1", "email_id": ID}
    return Report(**standard | changes)


def about(*addresses: str) -> tuple[Recipient, ...]:
    return tuple(Recipient(names=(Address(address),)) for address in addresses)


def known(*recipients: str, **changes: Any) -> Known:
    to = tuple(map(Address, recipients or ("to@example.net",)))
    return Known(email_id=ID, user_id=UserId("u1"), recipients=to, **changes)


@pytest.mark.parametrize(
    ("text", "kind", "permanent"),
    [
        (event("Send"), "sent", False),
        (event("Delivery", recipients=["to@example.net"], smtpResponse="250 ok"), "delivered", False),
        (event("Bounce", bounceType="Permanent", bouncedRecipients=BOUNCED), "bounced", True),
        (event("Bounce", bounceType="Transient", bouncedRecipients=BOUNCED), "bounced", False),
        (event("Bounce", bounceType="Undetermined", bouncedRecipients=BOUNCED), "bounced", False),
        (event("Complaint", complainedRecipients=[{"emailAddress": "to@example.net"}]), "complained", False),
        (event("Complaint", complaintSubType="OnAccountSuppressionList"), "complained", False),
        (event("DeliveryDelay", delayType="MailboxFull"), "delivery_delayed", False),
        (event("Open", ipAddress="192.0.2.1"), "opened", False),
        (event("Click", link="https://example.com/"), "clicked", False),
        (event("Reject", reason="Bad content"), "failed", False),
        (event("Rendering Failure", errorMessage="no name"), "failed", False),
        (notification("Bounce", MAIL, bounceType="Permanent", bouncedRecipients=BOUNCED), "bounced", True),
    ],
)
def test_each_event_of_ses_is_read(text: str, kind: str, permanent: bool) -> None:  # noqa: FBT001
    found = ses_report(text, "sns-1")
    assert found
    assert (found.kind, found.permanent) == (kind, permanent)
    assert (found.source_id, found.email_id, found.provider_id) == ("sns-1", ID, "0100-ses")


def test_a_bounce_keeps_its_evidence() -> None:
    found = ses_report(
        event("Bounce", bounceType="Permanent", bounceSubType="General", bouncedRecipients=BOUNCED, timestamp="T")
    )
    assert found
    (recipient,) = found.recipients
    assert recipient == Recipient(
        names=(Address("to@example.net"),), status="5.1.1", diagnostic="smtp; 550 5.1.1 unknown"
    )
    assert found.details == {"bounceType": "Permanent", "bounceSubType": "General"}
    assert (found.at, found.via) == ("T", "ses")
    assert found.source_id.startswith("ses:"), "without an envelope it is known by what it says"


@pytest.mark.parametrize(
    "text",
    [
        event("Subscription"),
        '{"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "You have successfully subscribed"}',
        "Successfully validated SNS topic for Amazon SES event publishing.",
        event("Complaint", complaintFeedbackType="not-spam"),
        event("Complaint", complaintFeedbackType="auth-failure"),
    ],
)
def test_what_changes_nothing_is_no_report(text: str) -> None:
    assert ses_report(text) is None


@pytest.mark.parametrize(
    "text",
    ["", "hi", "[]", "null", "1" * 5_000, "[" * 100_000, "{}", '{"eventType": 1}', '{"eventType": "Bounce"}', '{"a": "']
    + [json.dumps({"eventType": "Bounce", "mail": mail}) for mail in NO_MAILS],
)
def test_what_is_no_event_is_malformed(text: str) -> None:
    with pytest.raises(ReportMalformed):
        ses_report(text)


@pytest.mark.parametrize(
    ("mail", "email_id", "claimed_id"),
    [
        ({"tags": {"X-Entity-ID": [ID]}, "headers": [{"name": "X-Entity-ID", "value": OTHER}]}, ID, OTHER),
        ({"headers": [{"name": "x-entity-id", "value": OTHER.upper()}]}, None, OTHER),
        ({"commonHeaders": {"X-Entity-ID": OTHER}}, None, OTHER),
        ({"tags": {"X-Entity-ID": ["nobody"]}}, None, None),
        ({"tags": {"X-Entity-ID": []}, "headers": 3}, None, None),
        ({"tags": {"X-Entity-ID": ["00000000-0000-0000-0000-000000000000"]}}, None, None),
        ({}, None, None),
    ],
)
def test_the_tag_is_ours_and_the_header_is_the_senders(
    mail: dict[str, Any], email_id: EmailId | None, claimed_id: EmailId | None
) -> None:
    """What the message's own header says is kept apart: anybody can write it."""
    found = ses_report(notification("Delivery", {"messageId": "m", **mail}))
    assert found
    assert (found.email_id, found.claimed_id) == (email_id, claimed_id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from([ID, "Bounce", "Permanent"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["eventType", "mail", "messageId", "tags", "X-Entity-ID", "bounce", "bouncedRecipients",
                             "emailAddress", "headers", "name", "value", "commonHeaders", "delivery", "recipients"]),
            inner, max_size=5,
        )
    ),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(json_values, st.sampled_from(["Bounce", "Delivery", "Complaint", "Open", "?"]))
def test_any_json_is_read_or_malformed(value: object, kind: str) -> None:
    event = {"eventType": kind, "mail": {"messageId": "m"}} | (value if isinstance(value, dict) else {"bounce": value})
    try:
        found = ses_report(json.dumps(event))
    except ReportMalformed:
        return
    if found:
        written = json.loads(json.dumps(payload(found)))
        assert "\\u0000" not in json.dumps(written)
        again = report_of(found.kind, found.source_id, found.email_id, written)
        assert (again.kind, again.recipients, again.details) == (found.kind, found.recipients, found.details)
        effects(again, known("to@example.net", "b@example.net"))


def test_hostile_text_is_made_storable() -> None:
    found = ses_report(event("Bounce", bouncedRecipients=[{"diagnosticCode": "a\x00b\ud800" + "x" * 5_000}]))
    assert found
    assert found.recipients[0].diagnostic.startswith("a\ufffdb?xxx")
    assert len(found.recipients[0].diagnostic) == 1_000


@pytest.mark.parametrize(
    ("kind", "status", "not_after"),
    [
        ("sent", "sent", {"delivered", "bounced", "complained", "canceled"}),
        ("delivered", "delivered", {"bounced", "complained", "canceled", "suppressed"}),
        ("bounced", "bounced", {"complained", "canceled", "scheduled"}),
        ("complained", "complained", {"canceled", "suppressed", "scheduled"}),
        ("failed", "failed", {"delivered", "bounced", "complained", "canceled"}),
        ("delivery_delayed", "sent", {"sent", "delivered", "bounced"}),
        ("opened", "sent", {"sent", "delivered", "bounced"}),
        ("clicked", "sent", {"sent", "delivered", "bounced"}),
    ],
)
def test_a_status_moves_only_forward(kind: str, status: str, not_after: set[str]) -> None:
    found = effects(report(kind=kind), known())
    assert found
    assert found.status == status
    assert "processing" in found.before
    assert not found.before & not_after
    assert kind not in found.before


@pytest.mark.parametrize(
    ("changes", "suppress", "is_soft", "clears"),
    [
        ({"kind": "bounced", "permanent": True}, "bounced", False, False),
        ({"kind": "bounced"}, None, True, False),
        ({"kind": "complained"}, "complained", False, False),
        ({"kind": "unsubscribe"}, "manual", False, False),
        ({"kind": "delivered"}, None, False, True),
        ({"kind": "delivery_delayed"}, None, False, False),
        ({"kind": "failed"}, None, False, False),
        ({"kind": "opened"}, None, False, False),
    ],
)
def test_who_gets_no_more_mail(changes: dict[str, Any], suppress: str | None, is_soft: bool, clears: bool) -> None:  # noqa: FBT001
    found = effects(report(**changes), known())
    assert found
    assert (found.suppress, found.is_soft, found.clears_soft) == (suppress, is_soft, clears)
    assert found.event == (None if changes["kind"] == "unsubscribe" else changes["kind"])


@pytest.mark.parametrize(
    ("said", "recipients", "affected"),
    [
        (about("TO@Example.NET"), ("to@example.net",), ["to@example.net"]),
        (about("to@xn--bcher-kva.example"), ("To@bücher.example",), ["To@bücher.example"]),
        (about("a@x.net", "b@x.net", "a@X.net"), ("a@x.net", "b@x.net", "c@x.net"), ["a@x.net", "b@x.net"]),
        (about("a@x.net", "victim@x.net"), ("a@x.net", "b@x.net"), ["a@x.net"]),
        ((Recipient(names=()),), ("to@example.net",), ["to@example.net"]),
        ((), ("to@example.net",), ["to@example.net"]),
        ((Recipient(names=()),), ("a@x.net", "b@x.net"), []),
        ((Recipient(names=(Address("forwarded@y.net"), Address("a@x.net"))),), ("a@x.net",), ["a@x.net"]),
        ((Recipient(names=(Address("b@x.net"), Address("a@x.net"))),), ("a@x.net", "b@x.net"), ["a@x.net"]),
        (about("a@x.net"), ("A@x.net", "a@x.net"), ["A@x.net"]),
    ],
)
def test_only_recipients_are_affected(
    said: tuple[Recipient, ...], recipients: tuple[str, ...], affected: list[str]
) -> None:
    """Compared as the suppression list does; who is not named is the only one there is."""
    found = effects(report(kind="complained", recipients=said), known(*recipients))
    assert found
    assert [one.address for one in found.affected] == affected


def test_many_who_are_reported_are_found_among_many_in_one_pass() -> None:
    """Whoever knows the return path may name as many as they like."""

    def report_all(recipients: int) -> None:
        addresses = [f"{number}@x.net" for number in range(recipients)]
        whom = tuple(map(Address, reversed(addresses)))
        ours = known(*addresses, standing=Standing.UNRESOLVED, waiting_for=whom)
        found = effects(report(kind="bounced", recipients=about(*whom)), ours)
        assert found
        assert len(found.affected) == recipients

    assert_linear(report_all, 50)


def test_a_report_of_somebody_else_changes_nothing() -> None:
    assert effects(report(kind="complained", recipients=about("victim@x.net")), known("a@x.net", "b@x.net")) is None
    assert effects(report(kind="complained", recipients=about("victim@x.net")), known("a@x.net")) is None


@pytest.mark.parametrize(
    ("kind", "standing", "waiting_for", "closes", "moves"),
    [
        ("delivered", Standing.DONE, None, False, True),
        ("delivered", Standing.OPEN, None, False, False),
        ("delivered", Standing.UNRESOLVED, None, True, True),
        ("delivered", Standing.UNRESOLVED, ("b@x.net",), False, False),
        ("delivered", Standing.UNRESOLVED, ("A@X.net",), True, True),
        ("failed", Standing.UNRESOLVED, None, True, True),
        ("opened", Standing.UNRESOLVED, None, True, True),
        ("opened", Standing.OPEN, None, False, False),
    ],
)
def test_a_report_resolves_what_is_uncertain(
    kind: str,
    standing: Standing,
    waiting_for: tuple[str, ...] | None,
    closes: bool,  # noqa: FBT001
    moves: bool,  # noqa: FBT001
) -> None:
    """A delivery to those who had it already proves nothing of an attempt for the others."""
    whom = None if waiting_for is None else tuple(map(Address, waiting_for))
    found = effects(
        report(kind=kind, recipients=about("a@x.net")),
        known("a@x.net", "b@x.net", standing=standing, waiting_for=whom),
    )
    assert found
    assert (found.closes_job, found.status is not None) == (closes, moves)
    assert found.went_out is (kind != "failed")


def test_results_are_of_single_recipients() -> None:
    """The only recipient of a delivered message has no other outcome than his message."""
    alone = effects(report(recipients=about("to@example.net")), known())
    assert alone
    assert alone.outcome is None
    among = effects(report(recipients=about("a@x.net")), known("a@x.net", "b@x.net"))
    assert among
    assert among.outcome == "delivered"
    assert "bounced" not in among.weaker
    assert among.affected == (Affected(address=Address("a@x.net"), status="", diagnostic=""),)


def test_an_unknown_kind_is_malformed() -> None:
    with pytest.raises(ReportMalformed):
        report_of("exploded", "1", ID, {})


def test_links_report_too() -> None:
    """An open and a click are the message's, an unsubscription is its recipient's."""
    said = {
        "timestamp": "T",
        "ipAddress": "192.0.2.7",
        "userAgent": "B",
        "link": "https://x/",
        "recipient": "to@example.net",
    }
    found = [of_link(kind, "s", ID, said) for kind in ("open", "click", "unsubscribe")]
    assert [one.kind for one in found] == ["opened", "clicked", "unsubscribe"]
    assert all((one.via, one.at, one.details["link"]) == ("link", "T", "https://x/") for one in found)
    assert found[2].recipients == about("to@example.net")
    assert of_link("open", "s", ID, {}).recipients == ()
