"""Judge a message by what is known of its key: every rule, in the order in which it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from opensend_milter.core.address import domain_of, envelope_address, normal_domain, same_recipient
from opensend_milter.core.couriers import Carries, CourierName
from opensend_milter.core.doubts import outside_of_mime
from opensend_milter.core.identity import row_digest
from opensend_milter.core.message import has_eight_bit, has_longer_line
from opensend_milter.core.model import (
    CLIENT_ADDR,
    Accept,
    Address,
    Earlier,
    Facts,
    Identity,
    KeyFacts,
    KeyScope,
    Limits,
    Message,
    OnSuppressed,
    Reading,
    Refuse,
    Repeat,
    Session,
    Subscription,
    UserId,
    Verdict,
    refuse,
)
from opensend_milter.core.rules import NOT_ASCII, NOT_YET_PAID, Rule

OURS = refuse(Rule.OURS, "temporary failure on our side; try again later")
UNAUTHENTICATED = refuse(Rule.UNAUTHENTICATED, "authentication required: password is the API key")
NOT_A_KEY = refuse(Rule.NOT_A_KEY, "the authenticated identity is not an API key of this service")
_REVOKED = refuse(Rule.KEY_REVOKED, "the API key was revoked or has no owner; log in with a valid key")
_NETWORK_UNKNOWN = refuse(
    Rule.NETWORK_UNKNOWN,
    f"the API key is bound to networks, and this mail server does not say where you are: it must send {CLIENT_ADDR}",
)
LONGEST_DELAY = timedelta(days=30)
_SAME_TIME = timedelta(minutes=1)
"""REST's rows say when they are due, not what was asked for."""
_SANDBOX = re.compile(
    r"(?:(delivered|bounced|complained)(?:\+[^@]*)?|(suppressed))@resend\.dev", re.IGNORECASE | re.ASCII
)
_MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""
_SHOWN_ADDRESSES = 5
"""A reply line has room for so many; the record has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of this installation."""

    limits: Limits
    carries: Carries
    """What the configured courier can carry."""
    sender_domains: Literal["verified", "restricted-only"]
    on_suppressed: OnSuppressed = "reject-message"
    sandbox_addresses: bool = False
    """OpenSend's ingester treats `delivered@resend.dev` and its like as a play."""
    couriers: Mapping[CourierName, Carries] = field(default_factory=dict)
    """What the others can, for domains that have one of their own."""

    def refuse_size(self, size: int) -> Refuse | None:
        """Refuse what is too large to be read at all."""
        if size <= self.limits.max_message_bytes:
            return None
        text = f"message of {size} octets is over the limit of {self.limits.max_message_bytes}"
        return refuse(Rule.TOO_LARGE, text)

    def judge(self, message: Message, reading: Reading, identity: Identity, facts: Facts) -> Verdict:
        """Decide; without I/O, so that the same facts always give the same verdict."""
        key = facts.key
        if key is None or key.user_id is None:
            return _REVOKED
        if refusal := _refuse_key(key.scope, message.session):
            return refusal
        if facts.earlier is not None and not facts.earlier.expired:
            return _again(message, reading, identity, facts.earlier)
        dropped = facts.suppressed if self._drops(message, key, facts) else ()
        scheduled_at = _moment(reading.wishes.send_at, facts.now)
        refusal = (
            self._refuse_sender(key, reading, facts)
            or _refuse_beyond_scope(key.scope, message, reading)
            or _refuse_subscription(facts.subscription)
            or self._refuse_recipients(message, facts, dropped)
            or self._refuse_content(message, reading, self._carries(facts), {address for address, _ in dropped})
            or _refuse_moment(scheduled_at, facts.now)
            # Last: whoever is told to come again tomorrow is not told then that it was in vain.
            or _refuse_quota(key.scope)
        )
        if refusal:
            return refusal
        left_out = {address for address, _ in dropped}
        return Accept(
            user_id=UserId(key.user_id),
            reading=reading,
            identity=identity,
            recipients=tuple([address for address in message.envelope.recipients if address not in left_out]),
            dropped=dropped,
            courier=facts.courier,
            scheduled_at=scheduled_at,
            frees=facts.earlier.email_id if facts.earlier else None,
            touches_key=key.unused_lately,
            per_day=key.scope.per_day,
        )

    def _drops(self, message: Message, key: KeyFacts, facts: Facts) -> bool:
        """Tell whether suppressed recipients are left out; a message with no other recipient is refused."""
        rule = key.on_suppressed or self.on_suppressed
        suppressed = {address for address, _ in facts.suppressed}
        return rule == "drop-recipient" and len(suppressed) < len(message.envelope.recipients)

    def _refuse_sender(self, key: KeyFacts, reading: Reading, facts: Facts) -> Refuse | None:
        shown = domain_of(reading.sender.address)
        domain = normal_domain(shown)
        if domain is None:
            return refuse(Rule.FROM_MALFORMED, f"the From domain {shown!a} is not a domain name")
        if key.restricted and key.restricted_domain is None:
            text = "the API key is restricted to a domain that its user no longer has; make a new key"
            return refuse(Rule.FROM_RESTRICTED, text)
        if key.restricted_domain is not None and normal_domain(key.restricted_domain) != domain:
            allowed = key.restricted_domain
            text = f"the API key may only send from {allowed}, not from {domain}; subdomains are domains of their own"
            return refuse(Rule.FROM_RESTRICTED, text)
        if self.sender_domains == "verified" and not facts.sender_domain_verified:
            text = f"the From domain {domain} is not a verified domain of this account; add and verify it first"
            return refuse(Rule.FROM_UNVERIFIED, text)
        return None

    def _refuse_recipients(
        self, message: Message, facts: Facts, dropped: tuple[tuple[Address, str], ...]
    ) -> Refuse | None:
        count = len(message.envelope.recipients)
        if count > self.limits.max_recipients:
            text = f"{count} recipients are over the limit of {self.limits.max_recipients}; send several messages"
            return refuse(Rule.TOO_MANY_RECIPIENTS, text)
        if self.sandbox_addresses and _mixes_sandbox(message.envelope.recipients):
            text = "addresses of OpenSend's sandbox go alone, and all with the same outcome; send two messages"
            return refuse(Rule.SANDBOX_MIXED, text)
        if not facts.suppressed or dropped:
            return None
        named = _some([f"{address} ({reason})" for address, reason in facts.suppressed])
        text = f"nothing was sent: on the suppression list: {named}; leave them out or remove them from the list"
        return refuse(Rule.RECIPIENT_SUPPRESSED, text)

    def _carries(self, facts: Facts) -> Carries:
        return self.couriers.get(facts.courier, self.carries) if facts.courier else self.carries

    def _refuse_content(
        self, message: Message, reading: Reading, carries: Carries, dropped: set[Address]
    ) -> Refuse | None:
        if reading.attachment_bytes > self.limits.max_attachment_bytes:
            text = (
                f"attachments of {reading.attachment_bytes} octets (as base64) "
                f"are over the limit of {self.limits.max_attachment_bytes}"
            )
            return refuse(Rule.ATTACHMENTS_TOO_LARGE, text)
        return _refuse_beyond(message, reading, carries, dropped)


def _refuse_beyond(message: Message, reading: Reading, carries: Carries, dropped: set[Address]) -> Refuse | None:
    """Refuse what the courier of this domain cannot carry: later there would be nobody to tell."""
    if carries.max_message_bytes is not None and message.size > carries.max_message_bytes:
        text = f"message of {message.size} octets: the way it would leave takes {carries.max_message_bytes}"
        return refuse(Rule.TOO_LARGE, text)
    count = len(message.envelope.recipients) - len(dropped)
    if carries.max_recipients is not None and count > carries.max_recipients:
        text = f"{count} recipients: the way it would leave takes {carries.max_recipients}; send several messages"
        return refuse(Rule.TOO_MANY_RECIPIENTS, text)
    if not carries.utf8_addresses and (odd := _beyond_ascii(message, reading, dropped)):
        text = f"the mailbox name of {odd!a} is not ASCII: Amazon SES cannot send that; a domain may be any"
        return refuse(Rule.CANNOT_CARRY, text, NOT_ASCII)
    octets = carries.max_line_octets
    if octets is not None and has_longer_line(message.raw, octets):
        text = f"a line is longer than {octets} octets (RFC 5321); wrap it or encode the part as base64"
        return refuse(Rule.CANNOT_CARRY, text)
    if not carries.eight_bit and has_eight_bit(message.raw):
        text = "the next hop carries no 8-bit content; encode it as base64 or quoted-printable"
        return refuse(Rule.CANNOT_CARRY, text)
    return None


def _some(named: list[str]) -> str:
    more = len(named) - _SHOWN_ADDRESSES
    return ", ".join(named[:_SHOWN_ADDRESSES]) + (f" and {more} more" if more > 0 else "")


def _refuse_key(scope: KeyScope, session: Session) -> Refuse | None:
    """Refuse a key that is no good any more, or not from there."""
    if scope.expired_at is not None:
        since = scope.expired_at.astimezone(UTC).isoformat(timespec="seconds")
        return refuse(Rule.KEY_EXPIRED, f"the API key expired at {since}; make a new key, or have this one extended")
    if scope.networks is not None and not is_within(session.client_address, scope.networks):
        if session.front_door == "smtp" and not session.client_address:
            return _NETWORK_UNKNOWN
        client = session.client_address or "an unknown address"
        text = f"the API key may not be used from {client}; add its network to the key"
        return refuse(Rule.NETWORK_NOT_ALLOWED, text)
    return None


def _refuse_beyond_scope(scope: KeyScope, message: Message, reading: Reading) -> Refuse | None:
    """Refuse what this key may not send, though another of its user may."""
    shown = reading.sender.address
    if scope.allowed_senders is not None and _not_listed([shown], scope.allowed_senders):
        text = f"the API key may not send as {shown}; it may send as {_some(list(scope.allowed_senders)) or 'nobody'}"
        return refuse(Rule.SENDER_NOT_ALLOWED, text)
    if scope.allowed_recipients is not None:
        others = _not_listed(message.envelope.recipients, scope.allowed_recipients)
        if others:
            text = f"nothing was sent: the API key may not send to {_some(others)}; leave them out"
            return refuse(Rule.RECIPIENT_NOT_ALLOWED, text)
    if not scope.may_attach and reading.attachments:
        return refuse(Rule.ATTACHMENTS_NOT_ALLOWED, "the API key may not send attachments, inline images included")
    if not scope.may_html and _has_html(reading):
        return refuse(Rule.HTML_NOT_ALLOWED, "the API key may not send HTML; send plain text")
    if scope.may_attach and scope.may_html:
        return None
    return _refuse_doubt(scope, reading.doubt or outside_of_mime(message.raw, reading.text))


def _refuse_doubt(scope: KeyScope, place: str) -> Refuse | None:
    """Refuse where a recipient might be shown what this key may not send."""
    if not place:
        return None
    text = f"may not send {'HTML' if scope.may_attach else 'attachments'}, and mail programs may find some in {place}"
    rule = Rule.HTML_NOT_ALLOWED if scope.may_attach else Rule.ATTACHMENTS_NOT_ALLOWED
    return refuse(rule, f"the API key {text}")


def _not_listed(addresses: Iterable[Address], listed: Iterable[str]) -> list[str]:
    """Return which addresses are not on a list, and neither is their domain; a subdomain is another domain."""
    known = {same_recipient(Address(entry)) for entry in listed}
    found = []
    for address in addresses:
        # From may quote a local part without need, which an envelope never does.
        local, domain = same_recipient(envelope_address(address) or address)
        if not {(local, domain), ("", domain)} & known:
            found.append(str(address))
    return found


def _has_html(reading: Reading) -> bool:
    """Tell whether anything in it would be shown as HTML: mail programs show attached pages too."""
    kinds = ("text/html", "application/xhtml", "text/x-amp-html", "text/watch-html")
    return bool(reading.html) or any(one.content_type.startswith(kinds) for one in reading.attachments)


def _refuse_quota(scope: KeyScope) -> Refuse | None:
    if scope.per_day is None or scope.sent_today < scope.per_day:
        return None
    text = f"the API key has sent its {scope.per_day} messages of today; it may send again after midnight UTC"
    return refuse(Rule.DAILY_QUOTA, text)


def is_within(client_address: str, networks: Iterable[str]) -> bool:
    """Tell whether an address is in one of these networks; what is no address or no network is in none."""
    try:
        client: IPv4Address | IPv6Address = ip_address(client_address)
    except ValueError:
        return False
    if isinstance(client, IPv6Address):
        client = client.ipv4_mapped or client
    return any(found is not None and client in found for found in map(network_of, networks))


def network_of(text: str) -> IPv4Network | IPv6Network | None:
    """Read a network or an address, or None where the text is neither; mapped IPv4 is IPv4."""
    try:
        network = ip_network(text)
    except ValueError:
        return None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - _MAPPED.prefixlen))
    return network


def _beyond_ascii(message: Message, reading: Reading, dropped: set[Address]) -> Address | None:
    """Find an address whose local part has no other spelling."""
    shown = (mailbox.address for mailbox in (reading.sender, *reading.reply_to))
    addresses = (*(address for address in message.envelope.recipients if address not in dropped), *shown)
    return next((address for address in addresses if not address.rpartition("@")[0].isascii()), None)


def _again(message: Message, reading: Reading, identity: Identity, earlier: Earlier) -> Repeat | Refuse:
    """Tell a message that is sent again from another one under the same name: a 250 must be true of this one, too."""
    if identity.idempotency_key is None:
        return Repeat(email_id=earlier.email_id)  # a fingerprint has content and time in it
    if earlier.holder == "account":
        since = earlier.received_at.astimezone(UTC).isoformat(timespec="seconds")
        text = f"the Idempotency-Key is in use by another API key of this account, since {since}; use another one"
        return refuse(Rule.DUPLICATE_KEY, text)
    if not _is_same_content(message, reading, identity, earlier):
        where = " that OpenSend's REST API took" if earlier.holder == "rest" else ""
        text = (
            f"the Idempotency-Key was used for another message{where} ({earlier.email_id}); "
            "use a new key for a new message, the old one only for the same"
        )
        return refuse(Rule.DUPLICATE_KEY, text)
    if not _is_same_time(reading, earlier):
        when = earlier.scheduled_at.astimezone(UTC).isoformat(timespec="seconds") if earlier.scheduled_at else "at once"
        text = (
            f"the Idempotency-Key was used for the same message at another time ({earlier.email_id}, to be sent "
            f"{when}); use a new key to send it again"
        )
        return refuse(Rule.DUPLICATE_KEY, text)
    return Repeat(email_id=earlier.email_id)


def _is_same_content(message: Message, reading: Reading, identity: Identity, earlier: Earlier) -> bool:
    if earlier.content_digest is None:
        return False
    made = row_digest(message, reading) if earlier.holder == "rest" else identity.content_digest
    return earlier.content_digest == made


def _is_same_time(reading: Reading, earlier: Earlier) -> bool:
    """Tell whether it was to leave then as it is now; a delay counts from when each was received."""
    then, now = earlier.scheduled_at, _moment(reading.wishes.send_at, earlier.received_at)
    if then is None or now is None:
        return then is now
    return abs(now - then) <= _SAME_TIME


def _refuse_subscription(subscription: Subscription) -> Refuse | None:
    """Refuse as OpenSend's billing does; what a payment mends is temporary."""
    if subscription == "fine":
        return None
    if subscription == "past_due":
        text = "quota: the subscription is past due for more than three days; pay it, then try again"
        return refuse(Rule.QUOTA, text, NOT_YET_PAID)
    return refuse(Rule.QUOTA, f"quota: this account has no paid plan to send with ({subscription})")


def _mixes_sandbox(recipients: tuple[Address, ...]) -> bool:
    outcomes = {
        (match[1] or match[2]).lower() if (match := _SANDBOX.fullmatch(address)) else "" for address in recipients
    }
    return len(outcomes) > 1


def _moment(send_at: datetime | timedelta | None, now: datetime) -> datetime | None:
    return now + send_at if isinstance(send_at, timedelta) else send_at


def may_wait_until(moment: datetime, now: datetime) -> bool:
    """Tell whether a message may be sent then: not before now, and not too far off."""
    return now < moment <= now + LONGEST_DELAY


def _refuse_moment(scheduled_at: datetime | None, now: datetime) -> Refuse | None:
    if scheduled_at is None or may_wait_until(scheduled_at, now):
        return None
    when = scheduled_at.isoformat(timespec="seconds")
    text = f"X-OpenSend-Send-At: {when} is not within the next {LONGEST_DELAY.days} days; leave it out to send now"
    return refuse(Rule.CONTROL_FIELD, text)
