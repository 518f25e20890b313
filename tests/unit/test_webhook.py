"""Webhooks: what is signed, what is written, when it is tried again; and which addresses may be called."""

from __future__ import annotations

import ipaddress
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from standardwebhooks.webhooks import Webhook as Receiver, WebhookVerificationError

from opensend_milter.adapters.webhook_calls import may_be_called, place_of
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import EmailId
from opensend_milter.core.webhook import (
    EVENT_TYPES,
    LONGEST_ASKED_S,
    PAUSES_S,
    Answer,
    Event,
    EventId,
    Fate,
    Webhook,
    WebhookId,
    asked_pause_s,
    body_of,
    event_types,
    fate_of,
    headers_of,
    kept,
    secret_of,
)

SIGNING = b"s" * 32
NOW = datetime.now(UTC)
ID = WebhookId("0198c5a2-7f00-7abc-8def-0123456789ab")
EVENT = Event(
    id=EventId("5a0cbd3e-0000-4000-8000-000000000000"),
    type="email.bounced",
    at=datetime(2025, 8, 20, 14, 0, 1, 234_567, tzinfo=timezone(timedelta(hours=2))),
    email_id=EmailId("0198c5a2-7f00-7abc-8def-000000000000"),
    payload={"reason": "no such mailbox: jürgen \u2028", "email_id": "somebody else's"},
)


def verified(headers: dict[str, str], body: bytes, generation: int = 1) -> bool:
    try:
        Receiver(secret_of(SIGNING, ID, generation)).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def test_the_body_has_opensends_shape_and_our_email_id() -> None:
    assert json.loads(body_of(EVENT)) == {
        "id": EVENT.id,
        "type": "email.bounced",
        "created_at": "2025-08-20T12:00:01.234Z",
        "data": {"reason": "no such mailbox: jürgen \u2028", "email_id": EVENT.email_id},
    }


def test_what_is_signed_verifies_and_nothing_else_does() -> None:
    body = body_of(EVENT)
    headers = headers_of(Webhook(id=ID, url=""), EVENT.id, body, signing=SIGNING, now=datetime.now(UTC))
    assert verified(headers, body)
    assert not verified(headers, body + b" ")
    assert not verified(headers, body, generation=2)
    assert not verified({**headers, "webhook-id": "other"}, body)
    for name in ("id", "timestamp", "signature"):
        assert headers[f"svix-{name}"] == headers[f"webhook-{name}"]


@pytest.mark.parametrize(
    ("generation", "age", "good"),
    [
        (1, timedelta(hours=1), {1}),
        (2, None, {2}),
        (2, timedelta(0), {1, 2}),
        (3, timedelta(hours=23, minutes=59), {2, 3}),
        (3, timedelta(hours=24), {3}),
    ],
)
def test_after_a_change_both_secrets_sign_for_a_day(generation: int, age: timedelta | None, good: set[int]) -> None:
    now = datetime.now(UTC)  # the receiver compares it with its own clock
    webhook = Webhook(id=ID, url="", generation=generation, rotated_at=None if age is None else now - age)
    body = body_of(EVENT)
    headers = headers_of(webhook, EVENT.id, body, signing=SIGNING, now=now)
    assert {one for one in range(1, 5) if verified(headers, body, one)} == good


def test_each_webhook_has_its_own_secret() -> None:
    others = {secret_of(SIGNING, WebhookId(name), n) for name in ("a", "b", "b:1") for n in (1, 2)}
    assert len(others) == 6
    assert secret_of(b"t" * 32, ID, 1) != secret_of(SIGNING, ID, 1)


@pytest.mark.parametrize(
    ("code", "retry_after", "attempt", "jitter", "fate"),
    [
        (200, "", 1, 0, Fate("success")),
        (299, "", 8, 0, Fate("success")),
        (None, "", 1, 0, Fate("pending", 5)),
        (500, "", 2, 0, Fate("pending", 300)),
        (301, "", 3, 1, Fate("pending", 2_160)),
        (400, "", 7, 1, Fate("pending", 43_200)),
        (500, "", 8, 0, Fate("dead_letter")),
        (None, "", 9, 0, Fate("dead_letter")),
        (410, "", 1, 0, Fate("dead_letter")),
        (503, "120", 1, 0, Fate("pending", 120)),
        (429, "1", 1, 0, Fate("pending", 5)),
        (500, "120", 1, 0, Fate("pending", 5)),
        (429, "99999999", 1, 0, Fate("pending", LONGEST_ASKED_S)),
    ],
)
def test_what_becomes_of_a_delivery(
    *, code: int | None, retry_after: str, attempt: int, jitter: float, fate: Fate
) -> None:
    answer = Answer(code=code, text="", retry_after=retry_after)
    assert fate_of(answer, attempt, max_attempts=8, jitter=jitter, now=NOW) == fate


def test_more_attempts_than_the_schedule_has_wait_as_long_as_the_last() -> None:
    assert fate_of(Answer(code=500, text=""), 15, max_attempts=20, jitter=0, now=NOW).pause_s == PAUSES_S[-1]


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("", 0),
        (" 7 ", 7),
        ("9" * 5_000, LONGEST_ASKED_S),
        ("-5", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("Wed, 20 Aug 2025 12:02:00 GMT", 120),
        ("Wed, 20 Aug 2025 12:02:00 -0000", 120),
        ("Wed, 20 Aug 2025 11:00:00 GMT", 0),
        ("Wed, 20 Aug 2999 12:00:00 GMT", LONGEST_ASKED_S),
        ("Wed, 20 Aug 99999 12:00:00 GMT", 0),
        ("Wed, 32 Aug 2025 12:00:00 GMT", 0),
    ],
)
def test_retry_after(text: str, expected_s: float) -> None:
    assert asked_pause_s(text, datetime(2025, 8, 20, 12, 0, 0, tzinfo=UTC)) == expected_s


def test_what_is_kept_can_be_stored() -> None:
    assert kept("a\x00b\ud800" + "x" * 5_000) == "a\ufffdb?" + "x" * 996


def test_event_types_are_named_in_full_or_in_short() -> None:
    assert event_types([" email.Sent", "bounced", "sent", ""]) == ["email.sent", "email.bounced"]
    assert event_types([""]) == list(EVENT_TYPES)
    with pytest.raises(UsageError, match=r"no event type contact.created, email.sen; there are: email.sent, "):
        event_types(["sent", "contact.created", "sen"])


NEVER = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",  # noqa: S104
    "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "168.63.129.16",
    "100.100.100.200", "::", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "fd00:ec2::254", "::ffff:169.254.169.254",
    "::8.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "100::1", "4000::1", "fe80::1%1",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.255.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.255", "::1", "fc00::1", "fd12::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "2002:7f00:1::1", "2001:0:808:808:0:0:80ff:fffe",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize(
    ("addresses", "expected"), [(NEVER, (False, False)), (PRIVATE, (False, True)), (PUBLIC, (True, True))]
)
def test_addresses(addresses: list[str], expected: tuple[bool, bool]) -> None:
    """Without and with `allow_private`."""
    for text in addresses:
        address = ipaddress.ip_address(text)
        found = tuple(may_be_called(address, allow_private=allowed) for allowed in (False, True))
        assert found == expected, text


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("https://Example.org", "example.org", "/"),
        ("https://example.org.:443/a?b=c#d", "example.org", "/a?b=c"),
        ("https://bücher.example:8443/ü%20?q=ß", "xn--bcher-kva.example:8443", "/%C3%BC%20?q=%C3%9F"),
        ("https://[2606:4700::1]:444/", "[2606:4700::1]:444", "/"),
        ("https://example.org/a?", "example.org", "/a"),
    ],
)
def test_urls(url: str, authority: str, target: str) -> None:
    place = place_of(url, allow_private=False)
    assert (place.scheme, place.authority, place.target) == ("https", authority, target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://example.org/",
        "https://",
        "https:///path",
        "https://u:p@example.org/",
        "https://@example.org/",
        "https://example.org:99999/",
        "https://example.org:x/",
        "https://example.org/ HTTP/1.1",
        "https://example.org/\r\nX: y",
        "https://exa\nmple.org/",
        "https://[::1/",
        "https://☃/",
        "https://example.org/" + "x" * 3_000,
    ],
)
def test_what_is_no_url_of_a_webhook(url: str) -> None:
    with pytest.raises(UsageError):
        place_of(url, allow_private=False)


def test_plain_http_is_for_private_networks() -> None:
    assert place_of("http://box:8080/x", allow_private=True).authority == "box:8080"
