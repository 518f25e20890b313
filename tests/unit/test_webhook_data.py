"""What a webhook is told of each event: kept in files, held to the page that describes it, and bounded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.core.feedback import Recipient, Report, payload
from opensend_milter.core.model import Address, EmailId
from opensend_milter.core.webhook import EVENT_TYPES, Event, EventId, body_of
from opensend_milter.core.webhook_data import MOST_BYTES, MOST_LISTED, Mail
from tests.linear import assert_linear

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "webhooks"
PAGE = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
ANN, BOB, CAT = (f"{name}@example.net" for name in ("ann", "bob", "cat"))
UNKNOWN = "550 5.1.1 no such user"
EMAIL_ID = EmailId("0198c5a2-7f00-4abc-8def-0123456789ab")
MAIL = Mail(
    created_at=datetime(2025, 8, 20, 12, 0, 0, 100_000, tzinfo=UTC),
    sender="app@example.org",
    to=[ANN, BOB],
    subject="Your order: grüße",
    tags=[{"name": "category", "value": "order"}],
    metadata={"order": "4711"},
    message_id="<4711@app.example.org>",
    queue_id="4XabcdZ1Kz2",
    recipients=[ANN, BOB, CAT],
    key_id="0198c5a2-0000-4000-8000-000000000001",
    key_name="shop",
)


def reported(kind: Any, *who: Recipient, **more: Any) -> Mapping[str, object]:
    """What came back, as it stands in an event."""
    return payload(Report(kind=kind, source_id="x", email_id=EMAIL_ID, recipients=who, **more))


def about(address: str, status: str = "", diagnostic: str = "") -> Recipient:
    return Recipient(names=(Address(address),), status=status, diagnostic=diagnostic)


_REFUSED, _DEFERRED = {"email": BOB, "reason": UNKNOWN}, {"email": CAT, "reason": "450 4.2.2 full"}
_VISIT = {"ipAddress": "192.0.2.7", "userAgent": "Mail/1.0"}
TOLD: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "sent": (
        "sent",
        {"courier": "smtp", "reply": "250 2.0.0 Ok: queued as 4711", "refused": [_REFUSED], "provider_id": "p-1"},
    ),
    "delivered": ("delivered", reported("delivered", about(ANN), via="ses", at="2025-08-20T12:00:01.000Z")),
    "bounced": (
        "bounced",
        reported("bounced", about(BOB, "5.1.1", UNKNOWN), permanent=True, reason=UNKNOWN, via="inline",
                 details={"courier": "smtp", "host": "127.0.0.1:25", "code": "550"}),
    ),
    "bounced-by-mail": (
        "bounced",
        reported("bounced", about(BOB, "4.2.2", "smtp; 452 4.2.2 full"), via="mail", details={"action": "failed"}),
    ),
    "bounced-at-ses": (
        "bounced",
        reported("bounced", about(BOB, "5.1.1", "smtp; 550 5.1.1 unknown"), permanent=True, via="ses",
                 details={"bounceType": "Permanent", "bounceSubType": "General"}),
    ),
    "bounced-by-a-broken-relay": ("bounced", reported("bounced", about(BOB, "5.1.1", UNKNOWN), via="inline")),
    "complained": (
        "complained", reported("complained", about(ANN), via="mail", details={"complaintFeedbackType": "abuse"})
    ),
    "delivery_delayed": ("delivery_delayed", reported("delivery_delayed", about(CAT, "4.4.7"), via="ses")),
    "delayed": ("delayed", {"reason": "no recipient taken: 450 4.3.0 later", "attempt": 1,
                            "next_attempt_at": "2025-08-20T12:01:00+00:00"}),
    "delayed-for-some": (
        "delayed",
        {"courier": "smtp", "reply": "250 2.0.0 Ok", "refused": [_REFUSED], "deferred": [_DEFERRED], "attempt": 1,
         "next_attempt_at": "2025-08-20T12:01:00+00:00"},
    ),
    "delayed-again": ("delayed", {"reason": "450 4.3.0 later", "attempt": 2, "recipients": [{"email": CAT}]}),
    "opened": ("opened", reported("opened", about(ANN), via="link", at="2025-08-20T12:10:00Z", details=_VISIT)),
    "clicked": (
        "clicked",
        reported("clicked", about(ANN), via="link", at="2025-08-20T12:11:00Z",
                 details=_VISIT | {"link": "https://example.org/x"}),
    ),
    "failed": ("failed", {"reason": "the message: 554 5.7.1 spam", "attempt": 1}),
    "failed-for-some": (
        "failed", {"reason": "no recipient taken: 550 5.1.1 x", "attempt": 1,
                   "refused": [{"email": CAT, "reason": "550 5.7.1 not from you"}]},
    ),
    "suppressed": (
        "suppressed",
        {"reason": "recipient_suppressed", "recipients": [{"email": BOB, "reason": "bounced"}], "recipient_count": 1,
         "submitted_at": "2025-08-20T12:00:00.000Z"},
    ),
    "scheduled": ("scheduled", {}),
}  # fmt: skip


def event(name: str, mail: Mail | None = MAIL, **changes: object) -> Event:
    kind, said = TOLD[name]
    return Event(
        id=EventId("5a0cbd3e-0000-4000-8000-000000000000"),
        type=f"email.{kind}",
        at=datetime(2025, 8, 20, 12, 0, 1, 234_567, tzinfo=UTC),
        email_id=EMAIL_ID,
        payload={**said, **changes},
        mail=mail,
    )


def data(told: Event) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body_of(told))["data"]
    return found


@pytest.mark.parametrize("name", TOLD)
def test_each_event_is_told_as_it_is_kept(name: str) -> None:
    """UPDATE_WEBHOOKS=1 writes the files anew."""
    path = KEPT / f"{name}.json"
    told = json.dumps(json.loads(body_of(event(name))), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_WEBHOOKS"):
        path.write_text(told, encoding="utf-8")
    assert told == path.read_text(encoding="utf-8")


def test_there_is_a_file_for_each_type() -> None:
    assert {f"email.{kind}" for kind, _ in TOLD.values()} == set(EVENT_TYPES)
    assert {path.stem for path in KEPT.glob("*.json")} == set(TOLD)


def documented() -> Iterator[str]:
    """Yield the fields of the page's tables."""
    section = PAGE.partition("### Fields")[2].partition("### Signature")[0]
    for row in re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE):
        yield from re.findall(r"`(\w+)`", row)


def test_the_page_names_each_field_and_no_other() -> None:
    there = {name for told in TOLD for name in data(event(told))}
    assert set(documented()) == there | {"cut"}


def test_the_page_shows_the_bounce_as_it_is_sent() -> None:
    shown = PAGE.partition("An event of a bounce:")[2].partition("```json\n")[2].partition("```")[0]
    assert json.loads(shown) == json.loads(body_of(event("bounced")))


@pytest.mark.parametrize("name", TOLD)
def test_every_event_can_be_matched(name: str) -> None:
    """Whoever sent it over SMTP knows none of our ids."""
    found = data(event(name))
    assert (found["message_id"], found["queue_id"], found["email_id"]) == (MAIL.message_id, MAIL.queue_id, EMAIL_ID)
    assert (found["from"], found["to"], found["subject"]) == (MAIL.sender, MAIL.to, MAIL.subject)
    assert (found["tags"], found["metadata"]) == ({"category": "order"}, {"order": "4711"})
    assert found["key"] == {"id": MAIL.key_id, "name": "shop"}
    assert all({"email", "state"} <= one.keys() for one in found["recipients"])


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("sent", {ANN: "sent", BOB: "bounced", CAT: "sent"}),
        ("delivered", {ANN: "delivered"}),
        ("bounced", {BOB: "bounced"}),
        ("complained", {ANN: "complained"}),
        ("delivery_delayed", {CAT: "deferred"}),
        ("delayed", {ANN: "deferred", BOB: "deferred", CAT: "deferred"}),
        ("delayed-for-some", {ANN: "sent", BOB: "bounced", CAT: "deferred"}),
        ("delayed-again", {CAT: "deferred"}),
        ("opened", {ANN: "delivered"}),
        ("failed", {ANN: "failed", BOB: "failed", CAT: "failed"}),
        ("failed-for-some", {CAT: "failed"}),
        ("suppressed", {BOB: "suppressed"}),
    ],
)
def test_where_each_recipient_stood(name: str, states: dict[str, str]) -> None:
    assert {one["email"]: one["state"] for one in data(event(name))["recipients"]} == states


def test_a_report_that_names_nobody_means_the_only_recipient() -> None:
    """And of several none."""
    for recipients, states in (([ANN], [(ANN, "bounced")]), ([ANN, BOB], [])):
        told = event("bounced", Mail(recipients=recipients), recipients=[])
        assert [(one["email"], one["state"]) for one in data(told)["recipients"]] == states


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("sent", (250, "2.0.0", "Ok: queued as 4711")),
        ("bounced", (550, "5.1.1", "no such user")),
        ("bounced-by-mail", (452, "4.2.2", "full")),
        ("delayed", (450, "4.3.0", "later")),
        ("failed", (554, "5.7.1", "spam")),
        ("delivery_delayed", (None, "4.4.7", "")),
        ("opened", None),
        ("suppressed", None),
    ],
)
def test_what_the_next_hop_answered_is_taken_apart(name: str, answer: tuple[object, ...] | None) -> None:
    found = data(event(name))["answer"]
    assert (tuple(found.values()) if found else None) == answer


def test_of_a_refused_message_the_event_itself_says_whose_it_was() -> None:
    said = {"message_id": "<a@b>", "queue_id": "4Xq", "from": "app@example.org", "subject": "hi", "key_id": "k"}
    found = data(event("suppressed", Mail(key_id="k", key_name="shop"), **said))
    assert [found[name] for name in ("message_id", "queue_id", "from", "subject")] == list(said.values())[:4]
    assert "key_id" not in found
    assert found["key"] == {"id": "k", "name": "shop"}


def test_an_older_event_is_sent_as_it_was() -> None:
    assert data(event("bounced", None)) == {**TOLD["bounced"][1], "email_id": EMAIL_ID}


def test_a_body_is_bounded() -> None:
    """What a receiver can do without goes first, and it is said; what finds the message stays."""
    long = "\U0001f600" * 5_000
    many = [{"email": f"{number}@example.net", "reason": long[:1_000]} for number in range(1_000)]
    huge = Mail(
        created_at=MAIL.created_at,
        sender=long,
        to=[long] * 2_000,
        subject=long,
        tags=[{"name": f"{number}{long}", "value": long} for number in range(75)],
        metadata={f"{number}": long for number in range(50)},
        message_id=long,
        queue_id=long,
        recipients=[f"{number}@example.net" for number in range(1_000)],
        key_id=MAIL.key_id,
        key_name=long,
    )
    told = event("sent", huge, refused=many, deferred=many, reply="250 " + long[:996], reason=long[:1_000])
    body = body_of(told)
    assert len(body) <= MOST_BYTES
    found = json.loads(body)["data"]
    assert found["cut"] == ["recipients", "metadata", "refused", "deferred", "to", "tags", "recipients"]
    assert found["message_id"]
    assert found["key"]["id"] == MAIL.key_id
    some = data(event("sent", MAIL, details={"x": long, "y": long}, refused=[]))
    assert some["cut"] == ["details"]
    assert len(some["recipients"]) == len(MAIL.recipients)


def test_a_long_list_is_cut_and_it_is_said() -> None:
    found = data(event("sent", Mail(recipients=[f"{number}@x.net" for number in range(MOST_LISTED + 1)]), refused=[]))
    assert (len(found["recipients"]), found["cut"]) == (MOST_LISTED, ["recipients"])


@pytest.mark.parametrize(
    "said",
    [
        {"recipients": 3}, {"recipients": [3, None, {"email": 4, "status": [], "diagnostic": {}}]},
        {"refused": "x", "deferred": [[]]}, {"reply": 7, "reason": []}, {"details": "x"}, {"from": [], "subject": {}},
    ],
)  # fmt: skip
def test_whatever_stands_in_an_event_is_told(said: Mapping[str, object]) -> None:
    for name in TOLD:
        body_of(event(name, Mail(to="x", tags={"a": 1}, metadata=[1]), **said))


def test_it_is_told_in_linear_time() -> None:
    def tell(count: int) -> None:
        many = [{"email": f"{number}@example.net", "reason": UNKNOWN} for number in range(count)]
        everybody = [f"{number}@example.net" for number in range(2 * count)]
        body_of(event("sent", Mail(recipients=everybody), refused=many[: count // 2], deferred=many[count // 2 :]))

    assert_linear(tell, 200)
    sizes = [len(body_of(event("sent", Mail(recipients=["x@y.net"] * count)))) for count in (10, 1_000, 100_000)]
    assert all(second <= MOST_BYTES for _, second in pairwise(sizes))
