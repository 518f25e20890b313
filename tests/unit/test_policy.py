"""Every rule: what it refuses, what it lets pass, and what it tells the sender to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opensend_milter.core.message import read
from opensend_milter.core.model import (
    Accept,
    Address,
    Carries,
    Facts,
    KeyFacts,
    Limits,
    Reading,
    Refuse,
    Rule,
    UserId,
    Verdict,
)
from opensend_milter.core.policy import Policy
from tests.unit.messages import PLAIN, message

POLICY = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
FREE = KeyFacts(user_id=UserId("u1"), restricted=False, restricted_domain=None)
FACTS = Facts(key=FREE, sender_domain_verified=True, suppressed=())


def judge(raw: bytes = PLAIN, facts: Facts = FACTS, policy: Policy = POLICY, *recipients: str) -> Verdict:
    reading = read(raw, policy.limits)
    assert isinstance(reading, Reading)
    return policy.judge(message(raw, *recipients), reading, facts)


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


def test_every_refusal_is_worded_for_the_sender() -> None:
    """A reason and what to do: no word of our inside."""
    for verdict in (
        judge(from_domain("x.example"), held_to("example.org")),
        judge(from_domain("x.example"), held_to(None)),
    ):
        assert isinstance(verdict, Refuse)
        assert verdict.text.isascii()
        assert "Rule" not in verdict.text
