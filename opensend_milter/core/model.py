"""The nouns: who sends, what was sent, what we know, what we decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Literal, NamedTuple, NewType

from opensend_milter.core.control import Wishes
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.refs import ref_of
from opensend_milter.core.rules import Reply, Rule
from opensend_milter.core.transfer import Base64, Buffer

EmailId = NewType("EmailId", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)
Address = NewType("Address", str)

FrontDoor = Literal["smtp", "http"]
Holder = Literal["key", "account", "rest"]
"""Who used a name before: this key, another of the account, or OpenSend's REST API, which does not say with which."""
OnSuppressed = Literal["reject-message", "drop-recipient"]
Subscription = Literal["fine", "none", "past_due", "missing_plan", "legacy_free"]
"""What OpenSend's billing says of a user; `fine` also where there is no billing."""

CLIENT_ADDR = "{client_addr}"
"""The macro by which a mail server tells a milter where a message comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who hands the message in."""

    key_id: KeyId
    front_door: FrontDoor
    client_address: str
    tls: str
    """Protocol and cipher, empty without TLS."""
    endpoint: str = ""
    """The route, over HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Where the message goes: the truth, whatever the header says."""

    sender: str
    """MAIL FROM without brackets; empty for `<>`. Recorded, never used to send."""
    recipients: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as a front door received it."""

    id: EmailId
    session: Session
    envelope: Envelope
    queue_id: str
    received_at: datetime
    raw: Buffer
    """Header, empty line, body: the bytes as sent."""
    size: int
    sha256: bytes
    fault: Refuse | None = None
    """Why the front door already knows that it cannot be taken."""
    bulk_id: str | None = None
    """Of the request that brought several."""
    one_of: int = 0
    """How many there are under the one name that the request has; 0: they are no matter to each other."""


class Mailbox(NamedTuple):
    """A display name (decoded, may be empty) and an address."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A part that is no body."""

    filename: str
    content_type: str
    content_id: str | None
    content: Base64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reader found in a message; the bytes themselves stay where they are."""

    sender: Mailbox
    to: tuple[Mailbox, ...]
    cc: tuple[Mailbox, ...]
    reply_to: tuple[Mailbox, ...]
    subject: str
    message_id: str | None
    fields: tuple[tuple[str, str], ...]
    """Every header field: lower-case name, unfolded value."""
    wishes: Wishes
    text: str
    html: str
    attachments: tuple[Attachment, ...]
    unknown_charsets: tuple[str, ...] = ()
    """What texts say they are in, and no charset of mail is called."""
    doubt: str = ""
    """Where other mail programs may find other parts than these; empty: nowhere."""

    @property
    def attachment_bytes(self) -> int:
        """Sum of the attachments as base64, line ends not counted."""
        return sum(attachment.content.letters for attachment in self.attachments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """By what a message is known when it is sent again."""

    content_digest: bytes
    fingerprint: bytes | None
    """None where the client gave the message no name: it is never taken for a repetition."""
    idempotency_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What judging one message asks of the database."""

    key_id: KeyId
    sender_domains: tuple[str, str]
    """From's domain, with A-labels and with U-labels."""
    recipients: tuple[Address, ...]
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyScope:
    """What a key may do, where that is less than everything: addresses are such, or @domain; None is no bound."""

    allowed_senders: tuple[str, ...] | None = None
    allowed_recipients: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    may_attach: bool = True
    may_html: bool = True
    expired_at: datetime | None = None
    per_day: int | None = None
    sent_today: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """What the database says of an API key now."""

    user_id: UserId | None
    restricted: bool
    """The key is bound to a domain."""
    restricted_domain: str | None
    """That domain's name; None where the key names a domain that is not its user's."""
    on_suppressed: OnSuppressed | None = None
    """The key's own rule, where it has one."""
    unused_lately: bool = False
    """Its last use is to be noted."""
    scope: KeyScope = field(default=KeyScope())


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A message taken before, under the same name."""

    email_id: EmailId
    holder: Holder
    received_at: datetime
    scheduled_at: datetime | None = None
    content_digest: bytes | None
    """Of what REST took: `identity.row_digest` of its row. None: it cannot be compared."""
    expired: bool
    """Its name is free again: its time is over, or it was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that judging one message needs to know from the database."""

    now: datetime
    """Names and keys expire by the database's clock, and our own may be wrong."""
    key: KeyFacts | None
    sender_domain_verified: bool
    suppressed: tuple[tuple[Address, str], ...]
    """Recipients on the suppression list, each with its reason."""
    earlier: Earlier | None = None
    """Known by the idempotency key or the fingerprint."""
    courier: CourierName | None = None
    """That of From's domain, where it has one of its own."""
    subscription: Subscription = "fine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The message is not taken: code and text for the sender, rule for the record."""

    code: int
    enhanced: str
    text: str
    rule: Rule
    token: str = field(default="", repr=False)
    """By what it is looked up; empty: it is not recorded."""

    @property
    def ref(self) -> str:
        """Return its token in short, as the record has it."""
        return ref_of(self.token) if self.token else ""


def refuse(rule: Rule, text: str, reply: Reply | None = None) -> Refuse:
    """Refuse as the table of rules has it; `reply`: which, where it has several for this rule."""
    said = reply or rule.replies[0]
    return Refuse(code=said.code, enhanced=said.enhanced, text=text, rule=rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The message may be stored: its row, as far as judging decides it."""

    user_id: UserId
    reading: Reading
    identity: Identity
    recipients: tuple[Address, ...]
    dropped: tuple[tuple[Address, str], ...] = ()
    """Suppressed recipients that are left out, each with its reason."""
    courier: CourierName | None = None
    """None: the configured one."""
    scheduled_at: datetime | None = None
    frees: EmailId | None = None
    """An earlier message whose name is used again after its time."""
    touches_key: bool = False
    per_day: int | None = None
    """A limit against which it is to be counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The message is ours already: nothing is stored, and the client is told 250."""

    email_id: EmailId


Verdict = Accept | Repeat | Refuse
Outcome = EmailId | Repeat | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """One message with its verdict, on its way into the database."""

    message: Message
    verdict: Verdict
    user_id: UserId | None = None
    """Whose key it was, also of a refusal, as far as known."""
    suppressed: tuple[tuple[Address, str], ...] = ()
    """What the suppression list said, for OpenSend's event."""
    message_id: str | None = None
    """As the client gave it, where the message could be read."""
    from_address: Address | None = None
    """As the message shows it, where it could be read."""
    subject: str = ""
    """So the subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a message that may be taken."""

    max_message_bytes: int = 41_943_040
    max_attachment_bytes: int = 41_943_040
    max_recipients: int = 50
    max_header_bytes: int = 1_048_576
    max_header_fields: int = 1_000
    max_addresses: int = 2_000
    """Addresses in one header field."""
    max_parts: int = 1_000
    max_depth: int = 50


class JobState(Enum):
    """Where a delivery stands."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    ATTEMPTING = "attempting"
    """Committed before the first byte goes out: a lease that ends here is uncertain."""
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One email whose job is to be put on the queue."""

    email_id: EmailId
    requested_at: datetime
    attempts: int
    """Attempts made so far: a FIFO queue drops what it was told within five minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One job received from the queue: a hint that an email may be due."""

    receipt: str
    email_id: EmailId


@dataclass(frozen=True, slots=True)
class Lane:
    """Jobs of one user for one courier: the lanes take turns, so that nobody's million makes others wait."""

    user_id: UserId
    courier: CourierName | None
    """None: the configured one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What the domain of From asks of a delivery; what it leaves open, the configuration says."""

    courier: CourierName | None = None
    region: str = ""
    configuration_set: str = ""
    track_opens: bool = False
    track_clicks: bool = False
    tracking_host: str = ""
    one_click: bool = False
    """It wants a List-Unsubscribe field of ours (RFC 8058)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A claimed email, with all that sending it needs."""

    email_id: EmailId
    user_id: UserId
    lease_id: str
    """Proof of the claim; whoever lost it records nothing."""
    attempts: int
    """Attempts begun before this one."""
    rounds: int = 0
    """How often a person had it tried again: attempts count from the start then."""
    from_address: Address
    recipients: tuple[Address, ...]
    """Who is still to get it: after an attempt that some took, the others."""
    raw: bytes
    received_at: datetime
    queue_id: str
    client_address: str
    front_door: FrontDoor
    tls: str
    route: Route = field(default=Route())
    some_have_it: bool = False
    """An earlier attempt reached others: whatever comes now, the message was sent."""
    refused: tuple[tuple[Address, str], ...] = ()
    """Whom earlier attempts found refused for good, each with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a courier is handed: the message as it leaves, and where to."""

    email_id: EmailId
    sender: Address
    """The return path, ours: never the client's MAIL FROM."""
    from_address: Address
    recipients: tuple[Address, ...]
    content: bytes
    """With CRLF line ends, without Bcc."""
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A courier's yes: the next hop's answer, and whom it did not take."""

    courier: CourierName
    reply: str
    refused: tuple[tuple[Address, str], ...] = ()
    """Never again, each with its reason."""
    deferred: tuple[tuple[Address, str], ...] = ()
    """To be tried again, each with its reason."""
    provider_id: str | None = None
    """By what the provider knows the message."""
    host: str = ""
    """Who answered, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the next hop said for good of single recipients."""

    courier: CourierName
    host: str = ""
    """Who answered, where that is known."""
    refused: tuple[tuple[Address, str], ...] = ()
    """Each with the answer."""
