"""Every rule: what it refuses, what it lets pass, and what it tells the sender to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv4Network
from typing import get_args

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from opensend_milter.core.couriers import Carries
from opensend_milter.core.identity import identify, row_digest
from opensend_milter.core.message import read
from opensend_milter.core.mime import LONGEST_VALUE
from opensend_milter.core.model import (
    Accept,
    Address,
    Earlier,
    EmailId,
    Facts,
    FrontDoor,
    KeyFacts,
    KeyScope,
    Limits,
    OnSuppressed,
    Reading,
    Refuse,
    Repeat,
    Subscription,
    UserId,
    Verdict,
)
from opensend_milter.core.policy import LONGEST_DELAY, Policy, is_within, network_of
from opensend_milter.core.rules import Rule
from tests.unit.messages import PLAIN, RECEIVED_AT, message

POLICY = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
FREE = KeyFacts(user_id=UserId("u1"), restricted=False, restricted_domain=None)
FACTS = Facts(now=RECEIVED_AT, key=FREE, sender_domain_verified=True, suppressed=())


def judge(raw: bytes = PLAIN, facts: Facts = FACTS, policy: Policy = POLICY, *recipients: str) -> Verdict:
    reading = read(raw, policy.limits)
    assert isinstance(reading, Reading)
    mail = message(raw, *recipients)
    return policy.judge(mail, reading, identify(mail, reading), facts)


def from_domain(domain: str) -> bytes:
    return f"From: a@{domain}\r\n\r\nhi".encode()


def held_to(domain: str | None) -> Facts:
    return replace(FACTS, key=replace(FREE, restricted=True, restricted_domain=domain))


def refused(verdict: Verdict) -> tuple[int, str, Rule]:
    assert isinstance(verdict, Refuse), verdict
    return verdict.code, verdict.enhanced, verdict.rule


def test_accepts_a_plain_message() -> None:
    verdict = judge()
    assert isinstance(verdict, Accept)
    assert verdict.user_id == "u1"


@pytest.mark.case(48)
@pytest.mark.case(53)
@pytest.mark.parametrize("key", [None, replace(FREE, user_id=None)])
def test_a_key_that_is_gone_or_has_no_owner(key: KeyFacts | None) -> None:
    assert refused(judge(facts=replace(FACTS, key=key))) == (550, "5.7.1", Rule.KEY_REVOKED)


@pytest.mark.case(30)
@pytest.mark.case(31)
@pytest.mark.parametrize(
    ("held", "domain", "taken"),
    [
        ("example.org", "example.org", True),
        ("example.org", "EXAMPLE.org", True),
        ("Example.ORG", "example.org", True),
        ("exämple.org", "xn--exmple-cua.org", True),
        ("xn--exmple-cua.org", "exämple.org", True),
        ("example.org", "other.org", False),
        ("example.org", "sub.example.org", False),
        ("sub.example.org", "example.org", False),
        ("example.org", "org.org", False),
        ("co.uk", "example.co.uk", False),
        ("example.org", "notexample.org", False),
        (None, "example.org", False),
    ],
)
def test_a_restricted_key_sends_from_its_domain_only(held: str | None, domain: str, taken: bool) -> None:  # noqa: FBT001
    verdict = judge(from_domain(domain), held_to(held))
    if taken:
        assert isinstance(verdict, Accept)
    else:
        assert refused(verdict) == (550, "5.7.1", Rule.FROM_RESTRICTED)


@pytest.mark.case(30)
@pytest.mark.parametrize("domain", ["[192.0.2.1]", "localhost"])
def test_from_needs_a_domain_name(domain: str) -> None:
    assert refused(judge(from_domain(domain)))[2] is Rule.FROM_MALFORMED


def test_an_unverified_domain_is_named() -> None:
    verdict = judge(from_domain("new.example"), replace(FACTS, sender_domain_verified=False))
    assert refused(verdict) == (550, "5.7.1", Rule.FROM_UNVERIFIED)
    assert isinstance(verdict, Refuse)
    assert "new.example" in verdict.text


def test_restricted_only_lets_a_free_key_send_from_anywhere() -> None:
    policy = replace(POLICY, sender_domains="restricted-only")
    facts = replace(FACTS, sender_domain_verified=False)
    assert isinstance(judge(from_domain("any.example"), facts, policy), Accept)
    held = replace(facts, key=held_to("example.org").key)
    assert refused(judge(from_domain("any.example"), held, policy))[2] is Rule.FROM_RESTRICTED


@pytest.mark.case(25)
def test_only_from_counts() -> None:
    others = b"Sender: x@other.example\r\nResent-From: y@other.example\r\nReply-To: z@other.example\r\n"
    raw = b"From: a@example.org\r\n" + others + b"\r\n"
    assert isinstance(judge(raw, held_to("example.org")), Accept)


@pytest.mark.case(36)
@pytest.mark.case(37)
def test_suppressed_recipients_are_named_with_their_reason() -> None:
    facts = replace(FACTS, suppressed=((Address("bad@example.net"), "bounced"), (Address("no@example.net"), "manual")))
    verdict = judge(PLAIN, facts)
    assert refused(verdict) == (550, "5.7.1", Rule.RECIPIENT_SUPPRESSED)
    assert isinstance(verdict, Refuse)
    assert "bad@example.net (bounced), no@example.net (manual)" in verdict.text


@pytest.mark.case(37)
def test_many_suppressed_recipients_fit_a_reply() -> None:
    facts = replace(FACTS, suppressed=tuple((Address(f"r{n}@example.net"), "bounced") for n in range(50)))
    verdict = judge(PLAIN, facts)
    assert isinstance(verdict, Refuse)
    assert "and 45 more" in verdict.text


@pytest.mark.case(21)
def test_too_many_recipients() -> None:
    recipients = [f"r{n}@example.net" for n in range(51)]
    assert refused(judge(PLAIN, FACTS, POLICY, *recipients)) == (550, "5.5.3", Rule.TOO_MANY_RECIPIENTS)
    assert isinstance(judge(PLAIN, FACTS, POLICY, *recipients[:50]), Accept)


@pytest.mark.case(44)
def test_size_is_refused_before_reading() -> None:
    limit = POLICY.limits.max_message_bytes
    assert POLICY.refuse_size(limit) is None
    refusal = POLICY.refuse_size(limit + 1)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced, refusal.rule) == (552, "5.3.4", Rule.TOO_LARGE)


def test_attachments_that_grow_beyond_the_limit_as_base64() -> None:
    raw = b"From: a@example.org\r\nContent-Type: image/png\r\n\r\n" + b"x\r\n" * 1_000
    policy = replace(POLICY, limits=Limits(max_attachment_bytes=3_999))
    assert refused(judge(raw, FACTS, policy)) == (552, "5.3.4", Rule.ATTACHMENTS_TOO_LARGE)
    assert isinstance(judge(raw, FACTS, replace(POLICY, limits=Limits(max_attachment_bytes=4_000))), Accept)


@pytest.mark.case(19)
def test_what_the_courier_cannot_carry_is_refused_at_accept() -> None:
    long = PLAIN + b"x" * 999 + b"\r\n"
    assert refused(judge(long)) == (554, "5.6.0", Rule.CANNOT_CARRY)
    assert isinstance(judge(long, policy=replace(POLICY, carries=Carries(max_line_octets=None))), Accept)
    eight_bit = PLAIN + "é".encode()
    assert isinstance(judge(eight_bit), Accept)
    assert refused(judge(eight_bit, policy=replace(POLICY, carries=Carries(eight_bit=False))))[2] is Rule.CANNOT_CARRY


FIRST = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
SUPPRESSED = ((Address("bad@example.net"), "bounced"),)
ASKED = timezone(timedelta(hours=1))


def digest(raw: bytes = PLAIN, *recipients: str) -> bytes:
    reading = read(raw, Limits())
    assert isinstance(reading, Reading)
    return identify(message(raw, *recipients), reading).content_digest


TAKEN_AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def earlier(content_digest: bytes | None, **more: object) -> Facts:
    found: dict[str, object] = {"holder": "key", "received_at": TAKEN_AT, "expired": False}
    return replace(FACTS, earlier=Earlier(email_id=FIRST, content_digest=content_digest, **{**found, **more}))  # type: ignore[arg-type]  # the caller's names are Earlier's


KEYED = b"Idempotency-Key: k\r\n" + PLAIN


@pytest.mark.case(64)
def test_the_same_message_is_ours_already() -> None:
    """By its fingerprint, or under its Idempotency-Key."""
    assert judge(facts=earlier(b"of a fingerprint: not looked at")) == Repeat(email_id=FIRST)
    assert judge(KEYED, earlier(digest(KEYED))) == Repeat(email_id=FIRST)


@pytest.mark.case(76)
@pytest.mark.parametrize("holder", ["key", "rest"])
def test_what_cannot_be_compared_is_not_the_same(holder: str) -> None:
    """Records of our first version have no digest: a 250 might stand for another message."""
    assert refused(judge(KEYED, earlier(None, holder=holder))) == (550, "5.7.1", Rule.DUPLICATE_KEY)


def row_digest_of(raw: bytes) -> bytes:
    reading = read(raw, Limits())
    assert isinstance(reading, Reading)
    return row_digest(message(raw), reading)


@pytest.mark.case(65)
def test_what_rest_took_is_the_same_only_where_that_can_be_seen() -> None:
    assert judge(KEYED, earlier(row_digest_of(KEYED), holder="rest")) == Repeat(email_id=FIRST)
    for held in (None, b"other", digest(KEYED)):
        verdict = judge(KEYED, earlier(held, holder="rest"))
        assert refused(verdict) == (550, "5.7.1", Rule.DUPLICATE_KEY)
        assert isinstance(verdict, Refuse)
        assert f"OpenSend's REST API took ({FIRST})" in verdict.text


@pytest.mark.case(76)
def test_a_name_of_another_key_of_the_account_is_in_use_whatever_the_message_says() -> None:
    verdict = judge(KEYED, earlier(digest(KEYED), holder="account"))
    assert refused(verdict) == (550, "5.7.1", Rule.DUPLICATE_KEY)
    assert isinstance(verdict, Refuse)
    assert "another API key of this account, since 2026-01-01T12:00:00+00:00" in verdict.text
    assert FIRST not in verdict.text, "that is not this key's to know"


LATER = TAKEN_AT + timedelta(days=29)


@pytest.mark.case(76)
@pytest.mark.parametrize(
    ("field", "scheduled_at", "is_same"),
    [
        ("", None, True),
        ("", LATER, False),
        (f"X-OpenSend-Send-At: {LATER.isoformat()}", LATER, True),
        (f"X-OpenSend-Send-At: {LATER.isoformat()}", LATER + timedelta(minutes=2), False),
        (f"X-OpenSend-Send-At: {LATER.isoformat()}", None, False),
        ("X-OpenSend-Send-At: in 2 hours", TAKEN_AT + timedelta(hours=2), True),
        ("X-OpenSend-Send-At: in 2 hours", TAKEN_AT + timedelta(hours=3), False),
    ],
)
@pytest.mark.parametrize("holder", ["key", "rest"])
def test_the_same_message_at_another_time_is_another_message(
    field: str,
    scheduled_at: datetime | None,
    is_same: bool,  # noqa: FBT001
    holder: str,
) -> None:
    """A 250 for a repetition says that it goes out, or went out, as this one asks for."""
    raw = (f"{field}\r\n" if field else "").encode() + KEYED
    held = digest(raw) if holder == "key" else row_digest_of(raw)
    verdict = judge(raw, earlier(held, holder=holder, scheduled_at=scheduled_at))
    if is_same:
        assert verdict == Repeat(email_id=FIRST)
    else:
        assert refused(verdict) == (550, "5.7.1", Rule.DUPLICATE_KEY)
        assert isinstance(verdict, Refuse)
        assert "at another time" in verdict.text


@pytest.mark.case(64)
def test_a_repetition_is_answered_as_before_whatever_has_changed_since() -> None:
    facts = replace(
        earlier(digest()),
        sender_domain_verified=False,
        suppressed=SUPPRESSED,
        subscription="none",
        key=held_to(None).key,
    )
    assert judge(facts=facts) == Repeat(email_id=FIRST)
    assert refused(judge(facts=replace(facts, key=None)))[2] is Rule.KEY_REVOKED


@pytest.mark.case(65)
def test_another_message_under_the_same_key_is_told_whose_it_is() -> None:
    verdict = judge(KEYED, earlier(b"other"))
    assert refused(verdict) == (550, "5.7.1", Rule.DUPLICATE_KEY)
    assert isinstance(verdict, Refuse)
    assert FIRST in verdict.text


@pytest.mark.parametrize("content", [digest(), b"other", None])
def test_a_name_whose_time_is_over_is_taken_from_the_earlier_message(content: bytes | None) -> None:
    verdict = judge(facts=earlier(content, expired=True))
    assert isinstance(verdict, Accept)
    assert verdict.frees == FIRST
    fresh = judge()
    assert isinstance(fresh, Accept)
    assert fresh.frees is None


@pytest.mark.case(36)
@pytest.mark.parametrize(
    ("everywhere", "of_the_key", "dropped"),
    [
        ("reject-message", None, False),
        ("drop-recipient", None, True),
        ("drop-recipient", "reject-message", False),
        ("reject-message", "drop-recipient", True),
    ],
)
def test_the_rule_of_the_key_counts_before_that_of_the_installation(
    everywhere: OnSuppressed,
    of_the_key: OnSuppressed | None,
    dropped: bool,  # noqa: FBT001
) -> None:
    policy = replace(POLICY, on_suppressed=everywhere)
    facts = replace(FACTS, suppressed=SUPPRESSED, key=replace(FREE, on_suppressed=of_the_key))
    verdict = judge(PLAIN, facts, policy, "a@example.net", "bad@example.net", "b@example.net")
    if dropped:
        assert isinstance(verdict, Accept)
        assert verdict.recipients == ("a@example.net", "b@example.net")
        assert verdict.dropped == SUPPRESSED
    else:
        assert refused(verdict)[2] is Rule.RECIPIENT_SUPPRESSED


@pytest.mark.case(36)
def test_a_message_to_nobody_is_refused_whatever_the_rule() -> None:
    policy = replace(POLICY, on_suppressed="drop-recipient")
    facts = replace(FACTS, suppressed=SUPPRESSED)
    assert refused(judge(PLAIN, facts, policy, "bad@example.net"))[2] is Rule.RECIPIENT_SUPPRESSED
    verdict = judge(PLAIN, FACTS, policy, "a@example.net")
    assert isinstance(verdict, Accept)
    assert verdict.dropped == ()


@pytest.mark.case(37)
def test_a_recipient_with_two_reasons_is_one_recipient() -> None:
    policy = replace(POLICY, on_suppressed="drop-recipient")
    facts = replace(FACTS, suppressed=(*SUPPRESSED, (Address("bad@example.net"), "manual")))
    verdict = judge(PLAIN, facts, policy, "bad@example.net", "a@example.net")
    assert isinstance(verdict, Accept), verdict
    assert verdict.recipients == ("a@example.net",)


def test_recipients_are_counted_as_they_came() -> None:
    policy = replace(POLICY, on_suppressed="drop-recipient")
    recipients = ["bad@example.net", *(f"r{n}@example.net" for n in range(50))]
    verdict = judge(PLAIN, replace(FACTS, suppressed=SUPPRESSED), policy, *recipients)
    assert refused(verdict)[2] is Rule.TOO_MANY_RECIPIENTS


@pytest.mark.parametrize("subscription", get_args(Subscription))
def test_who_has_not_paid(subscription: Subscription) -> None:
    """A payment mends it, so the client is to try again; without a plan that is of no use."""
    verdict = judge(facts=replace(FACTS, subscription=subscription))
    if subscription == "fine":
        assert isinstance(verdict, Accept)
    elif subscription == "past_due":
        assert refused(verdict) == (452, "4.7.1", Rule.QUOTA)
    else:
        assert refused(verdict) == (550, "5.7.1", Rule.QUOTA)
        assert isinstance(verdict, Refuse)
        assert f"({subscription})" in verdict.text


@pytest.mark.parametrize(
    ("recipients", "mixed"),
    [
        (["delivered@resend.dev"], False),
        (["Delivered+a@Resend.DEV", "delivered@resend.dev"], False),
        (["anybody@resend.dev", "a@example.net"], False),
        (["delivered@resend.dev.example.net", "a@example.net"], False),
        (["delivered@resend.dev", "a@example.net"], True),
        (["delivered@resend.dev", "complained@resend.dev"], True),
    ],
)
def test_addresses_of_the_sandbox_go_alone(recipients: list[str], mixed: bool) -> None:  # noqa: FBT001
    verdict = judge(PLAIN, FACTS, replace(POLICY, sandbox_addresses=True), *recipients)
    assert (isinstance(verdict, Refuse) and verdict.rule is Rule.SANDBOX_MIXED) == mixed
    assert isinstance(judge(PLAIN, FACTS, POLICY, *recipients), Accept), "they are OpenSend's"


RECEIVED = message().received_at


def asking_for(when: str) -> Verdict:
    return judge(f"X-OpenSend-Send-At: {when}\r\n".encode() + PLAIN)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("in 1 minute", RECEIVED + timedelta(minutes=1)),
        ("in 30 days", RECEIVED + LONGEST_DELAY),
        ("in 31 days", None),
        ("in 0 minutes", None),
        ((RECEIVED + timedelta(seconds=1)).isoformat(), RECEIVED + timedelta(seconds=1)),
        ((RECEIVED + timedelta(seconds=1)).astimezone(ASKED).isoformat(), RECEIVED + timedelta(seconds=1)),
        (RECEIVED.isoformat(), None),
        ((RECEIVED + LONGEST_DELAY).isoformat(), RECEIVED + LONGEST_DELAY),
        ((RECEIVED + LONGEST_DELAY + timedelta(seconds=1)).isoformat(), None),
        ("1970-01-01T00:00:00Z", None),
    ],
)
def test_a_message_may_wait_for_a_month(when: str, expected: datetime | None) -> None:
    verdict = asking_for(when)
    if expected:
        assert isinstance(verdict, Accept)
        assert verdict.scheduled_at == expected
    else:
        assert refused(verdict) == (554, "5.6.0", Rule.CONTROL_FIELD)
        assert isinstance(verdict, Refuse)
        assert verdict.text.startswith("X-OpenSend-Send-At: ")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.datetimes(timezones=st.timezones()))
@example(datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=1))))
@example(datetime(1, 1, 1, tzinfo=ASKED))
@example(datetime(2026, 1, 3, tzinfo=UTC))
def test_any_time_is_judged(when: datetime) -> None:
    """No exception: that would be our fault, and 451 for ever."""
    assert isinstance(asking_for(when.isoformat()), Accept | Refuse)


def test_the_use_of_a_key_is_noted_where_that_was_not_done_lately() -> None:
    for unused in (True, False):
        verdict = judge(facts=replace(FACTS, key=replace(FREE, unused_lately=unused)))
        assert isinstance(verdict, Accept)
        assert verdict.touches_key == unused


def test_every_refusal_is_worded_for_the_sender() -> None:
    """A reason and what to do: no word of our inside."""
    for verdict in (
        judge(from_domain("x.example"), held_to("example.org")),
        judge(from_domain("x.example"), held_to(None)),
        judge(KEYED, earlier(b"other")),
        judge(KEYED, earlier(b"other", holder="account")),
        judge(KEYED, earlier(b"other", holder="rest")),
        judge(KEYED, earlier(digest(KEYED), scheduled_at=TAKEN_AT)),
        judge(facts=replace(FACTS, subscription="none")),
        judge(facts=replace(FACTS, subscription="past_due")),
        asking_for("in 31 days"),
        asking_for("in 0 minutes"),
    ):
        assert isinstance(verdict, Refuse)
        assert verdict.text.isascii()
        assert "Rule" not in verdict.text


@pytest.mark.case(22)
def test_beside_opensend_a_mailbox_name_beyond_ascii_cannot_be_carried() -> None:
    """Amazon SES knows no SMTPUTF8; a domain has another spelling, a local part has none."""
    policy = replace(
        POLICY, carries=Carries(max_line_octets=None, utf8_addresses=False), on_suppressed="drop-recipient"
    )
    assert isinstance(judge(PLAIN, FACTS, policy, "b@exämple.net"), Accept)
    assert refused(judge(PLAIN, FACTS, policy, "jürgen@example.net")) == (554, "5.6.7", Rule.CANNOT_CARRY)
    replies = b"Reply-To: j\xc3\xbcrgen@example.org\r\n" + PLAIN
    assert refused(judge(replies, FACTS, policy)) == (554, "5.6.7", Rule.CANNOT_CARRY)
    left_out = replace(FACTS, suppressed=((Address("jürgen@example.net"), "bounced"),))
    assert isinstance(judge(PLAIN, left_out, policy, "b@example.net", "jürgen@example.net"), Accept)
    assert isinstance(judge(PLAIN, FACTS, POLICY, "jürgen@example.net"), Accept)


# ---------------------------------------------------------------------- what a key may do


def scoped(scope: KeyScope, facts: Facts = FACTS) -> Facts:
    return replace(facts, key=replace(FREE, scope=scope))


def expect(verdict: Verdict, rule: Rule | None) -> None:
    if rule is None:
        assert isinstance(verdict, Accept)
    else:
        assert refused(verdict) == (550, "5.7.1", rule)


@pytest.mark.parametrize(
    ("shown", "allowed", "taken"),
    [
        ("a@example.org", None, True),
        ("a@example.org", (), False),
        ("a@example.org", ("a@example.org",), True),
        ("a@EXAMPLE.org", ("a@example.ORG",), True),
        ("A@example.org", ("a@example.org",), False),
        ("a+b@example.org", ("a@example.org",), False),
        ("b@example.org", ("a@example.org", "b@example.org"), True),
        ("a@example.org", ("@example.org",), True),
        ("A@example.org", ("@Example.org",), True),
        ("a@sub.example.org", ("@example.org", "a@example.org"), False),
        ("a@example.org", ("@sub.example.org",), False),
        ("a@notexample.org", ("@example.org",), False),
        ("a@example.org", ("@org", "@*.org", "*", "@", ""), False),
        ("a@bücher.example", ("@xn--bcher-kva.example",), True),
        ("a@xn--bcher-kva.example", ("a@BÜCHER.example",), True),
        ('"a"@example.org', ("a@example.org",), True),
        ('"a b"@example.org', ('"a b"@example.org',), True),
        ('"a b"@example.org', ("b@example.org",), False),
        ('"x example.org"@other.example', ("@example.org",), False),
    ],
)
def test_from_is_on_the_keys_list(shown: str, allowed: tuple[str, ...] | None, taken: bool) -> None:  # noqa: FBT001
    facts = scoped(KeyScope(allowed_senders=allowed))
    verdict = judge(f"From: {shown}\r\n\r\nhi".encode(), facts)
    expect(verdict, None if taken else Rule.SENDER_NOT_ALLOWED)


def test_who_may_not_send_is_told_who_may() -> None:
    verdict = judge(facts=scoped(KeyScope(allowed_senders=("x@example.org", "@y.example"))))
    assert isinstance(verdict, Refuse)
    assert verdict.text.endswith("may not send as a@example.org; it may send as x@example.org, @y.example")


@pytest.mark.parametrize(
    ("recipients", "allowed", "others"),
    [
        (["b@example.net"], None, None),
        (["b@example.net"], (), "b@example.net"),
        (["b@example.net", "c@example.com"], ("@example.net", "c@example.com"), None),
        (["b@example.net", "c@example.com", "d@x.example"], ("@example.net",), "c@example.com, d@x.example"),
        (["b@EXAMPLE.net"], ("b@example.NET",), None),
        (["B@example.net"], ("b@example.net",), "B@example.net"),
        (["b@sub.example.net"], ("@example.net",), "b@sub.example.net"),
        (["b@bücher.example"], ("b@xn--bcher-kva.example",), None),
        (['"b@example.net"@other.example'], ("@example.net",), '"b@example.net"@other.example'),
        ([f"r{n}@x.example" for n in range(5)], (), "r0@x.example, r1@x.example, r2@x.example, r3@x.example, "),
        ([f"r{n}@x.example" for n in range(7)], (), "r4@x.example and 2 more; leave them out"),
    ],
)
def test_each_recipient_is_on_the_keys_list(
    recipients: list[str], allowed: tuple[str, ...] | None, others: str | None
) -> None:
    verdict = judge(PLAIN, scoped(KeyScope(allowed_recipients=allowed)), POLICY, *recipients)
    expect(verdict, Rule.RECIPIENT_NOT_ALLOWED if others else None)
    assert others is None or (isinstance(verdict, Refuse) and others in verdict.text)


def test_only_the_envelope_counts() -> None:
    """Whoever is only in To gets nothing; whoever is in neither To nor Cc does."""
    facts = scoped(KeyScope(allowed_recipients=("b@example.net",)))
    expect(judge(PLAIN.replace(b"b@example.net", b"x@other.example"), facts), None)
    expect(judge(PLAIN, facts, POLICY, "b@example.net", "bcc@example.net"), Rule.RECIPIENT_NOT_ALLOWED)


@pytest.mark.parametrize(
    ("client", "networks", "within"),
    [
        ("192.0.2.7", ["192.0.2.0/24"], True),
        ("192.0.2.0", ["192.0.2.0/24"], True),
        ("192.0.2.255", ["192.0.2.0/24"], True),
        ("192.0.3.0", ["192.0.2.0/24"], False),
        ("192.0.1.255", ["192.0.2.0/24"], False),
        ("192.0.2.7", ["10.0.0.0/8", "192.0.2.7"], True),
        ("192.0.2.7", ["192.0.2.8/32"], False),
        ("192.0.2.7", ["0.0.0.0/0"], True),
        ("192.0.2.7", ["::/0"], False),
        ("::ffff:192.0.2.7", ["192.0.2.0/24"], True),
        ("::FFFF:c000:207", ["192.0.2.0/24"], True),
        ("192.0.2.7", ["::ffff:192.0.2.0/120"], True),
        ("192.0.3.7", ["::ffff:192.0.2.0/120"], False),
        ("2001:db8::1", ["2001:db8::/32"], True),
        ("2001:DB8:0::1", ["2001:db8::1"], True),
        ("2001:db9::1", ["2001:db8::/32"], False),
        ("fe80::1%eth0", ["fe80::/10"], True),
        ("::1", ["127.0.0.0/8"], False),
        ("192.0.2.7", [], False),
        ("", ["0.0.0.0/0", "::/0"], False),
        ("unknown", ["0.0.0.0/0", "::/0"], False),
        ("IPv6:2001:db8::1", ["::/0"], False),
        ("192.0.2.7 ", ["0.0.0.0/0"], False),
        ("192.0.2.07", ["0.0.0.0/0"], False),
        ("192.0.2.7", ["nonsense", "192.0.2.7/24", "192.0.2.7/33", ""], False),
        ("192.0.2.7", ["nonsense", "192.0.2.0/24"], True),
    ],
)
def test_networks(client: str, networks: list[str], within: bool) -> None:  # noqa: FBT001
    assert is_within(client, networks) == within


@given(st.text() | st.ip_addresses().map(str), st.text() | st.ip_addresses().map(str))
def test_any_address_and_any_network_have_an_answer(client: str, network: str) -> None:
    """No exception: that would be our fault, and 451 for ever."""
    assert is_within(client, [network]) in {True, False}


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_address_is_within_its_own_network(client: IPv4Address, length: int) -> None:
    network = str(IPv4Network((client, length), strict=False))
    mapped = f"::ffff:{client}"
    assert all(is_within(spelled, [network]) for spelled in (str(client), mapped))


def test_a_mapped_network_is_an_ipv4_network() -> None:
    assert str(network_of("::ffff:0:0/96")) == "0.0.0.0/0"
    assert str(network_of("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert str(network_of("::/0")) == "::/0"


def test_a_key_of_another_network_is_refused_before_its_message_is_looked_at() -> None:
    scope = KeyScope(networks=("10.0.0.0/8",))
    expect(judge(facts=scoped(scope)), Rule.NETWORK_NOT_ALLOWED)
    expect(judge(facts=scoped(scope, earlier(digest()))), Rule.NETWORK_NOT_ALLOWED)
    expect(judge(facts=scoped(replace(scope, networks=("192.0.2.0/24",)))), None)
    expect(judge(facts=scoped(replace(scope, networks=()))), Rule.NETWORK_NOT_ALLOWED)


@pytest.mark.parametrize(
    ("door", "networks", "rule"),
    [
        ("smtp", ("0.0.0.0/0",), Rule.NETWORK_UNKNOWN),
        ("http", ("0.0.0.0/0",), Rule.NETWORK_NOT_ALLOWED),
        ("smtp", None, None),
    ],
)
def test_a_mail_server_that_says_no_client_is_not_the_senders_fault(
    door: FrontDoor, networks: tuple[str, ...] | None, rule: Rule | None
) -> None:
    mail = message(PLAIN)
    mail = replace(mail, session=replace(mail.session, front_door=door, client_address=""))
    reading = read(PLAIN, POLICY.limits)
    assert isinstance(reading, Reading)
    verdict = POLICY.judge(mail, reading, identify(mail, reading), scoped(KeyScope(networks=networks)))
    assert (verdict.rule if isinstance(verdict, Refuse) else None) is rule
    if isinstance(verdict, Refuse) and rule is Rule.NETWORK_UNKNOWN:
        assert refused(verdict) == (451, "4.3.5", rule)
        assert "{client_addr}" in verdict.text


def test_an_expired_key_is_as_good_as_a_revoked_one() -> None:
    since = datetime(2026, 1, 1, 13, 30, 0, 5, tzinfo=ASKED)
    for facts in (FACTS, earlier(digest())):
        verdict = judge(facts=scoped(KeyScope(expired_at=since), facts))
        expect(verdict, Rule.KEY_EXPIRED)
        assert isinstance(verdict, Refuse)
        assert "expired at 2026-01-01T12:30:00+00:00" in verdict.text


def mixed(kind: str, more: str = "") -> bytes:
    text = "--b\r\n\r\nhello\r\n"
    return (
        "From: a@example.org\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        f"{text}--b\r\nContent-Type: {kind}\r\n{more}\r\n<p>hello\r\n--b--\r\n"
    ).encode()


PAGE = b"From: a@example.org\r\nContent-Type: text/html\r\n\r\n<p>hello"


@pytest.mark.parametrize(
    ("raw", "attaches", "html"),
    [
        (PLAIN, False, False),
        (PAGE, False, True),
        (PAGE.replace(b"text/html", b"Text/HTML; charset=utf-8"), False, True),
        (mixed("text/html"), False, True),
        (mixed("application/pdf", "Content-Disposition: attachment; filename=a.pdf\r\n"), True, False),
        (mixed("image/png", "Content-ID: <logo>\r\n"), True, False),
        (mixed("text/plain", "Content-Disposition: attachment\r\n"), True, False),
        (mixed("text/html", "Content-Disposition: attachment; filename=a.html\r\n"), True, True),
        (mixed("application/xhtml+xml"), True, True),
        (mixed("text/x-amp-html"), True, True),
    ],
)
def test_attachments_and_html(raw: bytes, attaches: bool, html: bool) -> None:  # noqa: FBT001
    expect(judge(raw, scoped(KeyScope(may_attach=False))), Rule.ATTACHMENTS_NOT_ALLOWED if attaches else None)
    expect(judge(raw, scoped(KeyScope(may_html=False))), Rule.HTML_NOT_ALLOWED if html else None)


EXE = "--{}\r\nContent-Type: application/x-msdownload; name=a.exe\r\n\r\nMZ\r\n--{}--\r\n"


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (
            b"From: a@example.org\r\nContent-Type: multipart/mixed; boundary=b" + b";\r\n x=y" * (LONGEST_VALUE // 5)
            + b"\r\n\r\n" + EXE.format("b", "b").encode(),
            "a Content-Type field",
        ),
        (mixed("multipart/mixed; boundary=b", "\r\n" + EXE.format("b", "b")), "goes on after its end"),
        (mixed("text/plain").replace(b"/mixed", b"/digest"), "a multipart/digest"),
        (mixed("message/rfc822", "\r\nContent-Type: text/html\r\n"), "an attached message"),
        (PLAIN + b"begin 644 a.exe\r\n#0V%T\r\n`\r\nend\r\n", "uuencode"),
        (PLAIN + b"=ybegin line=128 size=3 name=a.exe\r\n", "uuencode"),
        (mixed("text/plain", "\r\nhello\r--b\rContent-Type: application/pdf\r\r%PDF\r"), "CR alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_for_sure_is_refused_where_it_would_matter(raw: bytes, place: str) -> None:
    """Mail programs differ: one shows a file where we, and others, see a text."""
    expect(judge(raw, scoped(KeyScope())), None)
    for scope, rule in (
        (KeyScope(may_attach=False), Rule.ATTACHMENTS_NOT_ALLOWED),
        (KeyScope(may_html=False), Rule.HTML_NOT_ALLOWED),
    ):
        verdict = judge(raw, scoped(scope))
        expect(verdict, rule)
        assert isinstance(verdict, Refuse)
        assert place in verdict.text or "attachments, inline" in verdict.text


@pytest.mark.parametrize(
    ("per_day", "sent", "taken"),
    [(None, 0, True), (1, 0, True), (1, 1, False), (5, 4, True), (5, 5, False), (5, 9, False)],
)
def test_a_full_day_is_temporary(per_day: int | None, sent: int, taken: bool) -> None:  # noqa: FBT001
    verdict = judge(facts=scoped(KeyScope(per_day=per_day, sent_today=sent)))
    if taken:
        assert isinstance(verdict, Accept)
        assert verdict.per_day == per_day
    else:
        assert refused(verdict) == (452, "4.7.1", Rule.DAILY_QUOTA)


def test_a_full_day_says_nothing_of_what_would_be_refused_tomorrow_too() -> None:
    full = KeyScope(per_day=1, sent_today=1, may_html=False)
    expect(judge(PAGE, scoped(full)), Rule.HTML_NOT_ALLOWED)
    assert judge(facts=scoped(full, earlier(digest()))) == Repeat(email_id=FIRST), (
        "what was counted is not counted anew"
    )
