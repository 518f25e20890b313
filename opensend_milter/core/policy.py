"""Judge a message by what is known of its key: every rule, in the order in which it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opensend_milter.core.address import domain_of, normal_domain
from opensend_milter.core.message import has_eight_bit, has_longer_line
from opensend_milter.core.model import (
    Accept,
    Carries,
    Facts,
    KeyFacts,
    Limits,
    Message,
    Reading,
    Refuse,
    Rule,
    UserId,
    Verdict,
)

OURS = Refuse(code=451, enhanced="4.3.0", text="temporary failure on our side; try again later", rule=Rule.OURS)
UNAUTHENTICATED = Refuse(
    code=530, enhanced="5.7.0", text="authentication required: password is the API key", rule=Rule.UNAUTHENTICATED
)
NOT_A_KEY = Refuse(
    code=550, enhanced="5.7.1", text="the authenticated identity is not an API key of this service", rule=Rule.NOT_A_KEY
)
_REVOKED = Refuse(
    code=550,
    enhanced="5.7.1",
    text="the API key was revoked or has no owner; log in with a valid key",
    rule=Rule.KEY_REVOKED,
)
_SHOWN_SUPPRESSED = 5
"""A reply line has room for so many; the record has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of this installation."""

    limits: Limits
    carries: Carries
    sender_domains: Literal["verified", "restricted-only"]

    def refuse_size(self, size: int) -> Refuse | None:
        """Refuse what is too large to be read at all."""
        if size <= self.limits.max_message_bytes:
            return None
        text = f"message of {size} octets is over the limit of {self.limits.max_message_bytes}"
        return Refuse(code=552, enhanced="5.3.4", text=text, rule=Rule.TOO_LARGE)

    def judge(self, message: Message, reading: Reading, facts: Facts) -> Verdict:
        """Decide; without I/O, so that the same facts always give the same verdict."""
        if facts.key is None or facts.key.user_id is None:
            return _REVOKED
        refusal = (
            self._refuse_sender(facts.key, reading, facts)
            or self._refuse_recipients(message, facts)
            or self._refuse_content(message, reading)
        )
        return refusal or Accept(user_id=UserId(facts.key.user_id), reading=reading)

    def _refuse_sender(self, key: KeyFacts, reading: Reading, facts: Facts) -> Refuse | None:
        shown = domain_of(reading.sender.address)
        domain = normal_domain(shown)
        if domain is None:
            return _refuse(Rule.FROM_MALFORMED, f"the From domain {shown!a} is not a domain name")
        if key.restricted and key.restricted_domain is None:
            text = "the API key is restricted to a domain that its user no longer has; make a new key"
            return _refuse(Rule.FROM_RESTRICTED, text)
        if key.restricted_domain is not None and normal_domain(key.restricted_domain) != domain:
            allowed = key.restricted_domain
            text = f"the API key may only send from {allowed}, not from {domain}; subdomains are domains of their own"
            return _refuse(Rule.FROM_RESTRICTED, text)
        if self.sender_domains == "verified" and not facts.sender_domain_verified:
            text = f"the From domain {domain} is not a verified domain of this account; add and verify it first"
            return _refuse(Rule.FROM_UNVERIFIED, text)
        return None

    def _refuse_recipients(self, message: Message, facts: Facts) -> Refuse | None:
        count = len(message.envelope.recipients)
        if count > self.limits.max_recipients:
            text = f"{count} recipients are over the limit of {self.limits.max_recipients}; send several messages"
            return Refuse(code=550, enhanced="5.5.3", text=text, rule=Rule.TOO_MANY_RECIPIENTS)
        if not facts.suppressed:
            return None
        named = ", ".join(f"{address} ({reason})" for address, reason in facts.suppressed[:_SHOWN_SUPPRESSED])
        more = len(facts.suppressed) - _SHOWN_SUPPRESSED
        also = f" and {more} more" if more > 0 else ""
        text = f"nothing was sent: on the suppression list: {named}{also}; leave them out or remove them from the list"
        return _refuse(Rule.RECIPIENT_SUPPRESSED, text)

    def _refuse_content(self, message: Message, reading: Reading) -> Refuse | None:
        if reading.attachment_bytes > self.limits.max_attachment_bytes:
            text = (
                f"attachments of {reading.attachment_bytes} octets (as base64) "
                f"are over the limit of {self.limits.max_attachment_bytes}"
            )
            return Refuse(code=552, enhanced="5.3.4", text=text, rule=Rule.ATTACHMENTS_TOO_LARGE)
        octets = self.carries.max_line_octets
        if octets is not None and has_longer_line(message.raw, octets):
            text = f"a line is longer than {octets} octets (RFC 5321); wrap it or encode the part as base64"
            return Refuse(code=554, enhanced="5.6.0", text=text, rule=Rule.CANNOT_CARRY)
        if not self.carries.eight_bit and has_eight_bit(message.raw):
            text = "the next hop carries no 8-bit content; encode it as base64 or quoted-printable"
            return Refuse(code=554, enhanced="5.6.0", text=text, rule=Rule.CANNOT_CARRY)
        return None


def _refuse(rule: Rule, text: str) -> Refuse:
    return Refuse(code=550, enhanced="5.7.1", text=text, rule=rule)
