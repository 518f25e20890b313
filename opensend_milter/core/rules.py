"""The table of rules: why a message is refused, and what is answered then at each door."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Self


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer over SMTP, less its text."""

    code: int
    enhanced: str

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced}"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer over HTTP, less its text."""

    status: int
    code: str
    logged: int = 0
    """What OpenSend's log of requests has instead, where its REST API calls the same by another status; 0: the same."""

    def __str__(self) -> str:
        return f"{self.status} `{self.code}`"


@dataclass(frozen=True, slots=True)
class Field:
    """What in a request a rule is about; empty: nothing in particular."""

    rele: str = ""
    resend: str = ""
    """In Resend's dialect, where that has another name for it."""

    def named(self, dialect: str) -> str:
        """Return the name in a dialect."""
        return self.resend if dialect == "resend" and self.resend else self.rele


_BY_POLICY = Reply(550, "5.7.1")
_CONTENT = Reply(554, "5.6.0")
_SIZE = Reply(552, "5.3.4")
COME_AGAIN = Reply(421, "4.3.0")
"""Postfix closes the connection after it: who answers on it is going, or gone."""
NOT_YET_PAID = Reply(452, "4.7.1")
NOT_ASCII = Reply(554, "5.6.7")

_INVALID = HttpAnswer(400, "validation_failed", logged=422)
"""OpenSend's REST API says 422 of what it can read and not take."""
_WRONG_DOMAIN = HttpAnswer(400, "validation_failed", logged=403)
"""OpenSend's REST API takes a domain that is not the key's for a lack of rights, we for a wrong field."""
_BAD_KEY = HttpAnswer(403, "forbidden", logged=401)
"""OpenSend's REST API knows no key that is known and no good any more."""
_FORBIDDEN = HttpAnswer(403, "forbidden")
_TOO_LARGE = HttpAnswer(413, "payload_too_large")

_NOTHING = Field()
_FROM, _TO, _ATTACHMENTS = Field("from"), Field("to"), Field("attachments")


class Rule(Enum):
    """Why a message was refused; the value is what logs, records and docs call it. Adding one: docs/changing.md."""

    _value_: str
    replies: tuple[Reply, ...]
    """The first, where nothing else is said."""
    http: HttpAnswer
    field: Field

    def __new__(
        cls, value: str, replies: Reply | tuple[Reply, ...], http: HttpAnswer = _INVALID, field: Field = _NOTHING
    ) -> Self:
        """Make a row; the value is its first column."""
        rule = object.__new__(cls)
        rule._value_ = value
        rule.replies = replies if isinstance(replies, tuple) else (replies,)
        rule.http = http
        rule.field = field
        return rule

    @property
    def logged(self) -> int:
        """The status in OpenSend's log of requests."""
        return self.http.logged or self.http.status

    UNAUTHENTICATED = "unauthenticated", Reply(530, "5.7.0"), HttpAnswer(401, "unauthorized")
    NOT_A_KEY = "not-a-key", _BY_POLICY, _FORBIDDEN
    KEY_REVOKED = "key-revoked", _BY_POLICY, _BAD_KEY
    KEY_EXPIRED = "key-expired", _BY_POLICY, _BAD_KEY
    NETWORK_NOT_ALLOWED = "network-not-allowed", _BY_POLICY, _FORBIDDEN
    NETWORK_UNKNOWN = "network-unknown", Reply(451, "4.3.5"), HttpAnswer(503, "unavailable")
    """The mail server does not say who hands in: nothing that the sender could mend."""
    SENDER_NOT_ALLOWED = "sender-not-allowed", _BY_POLICY, _FORBIDDEN, _FROM
    RECIPIENT_NOT_ALLOWED = "recipient-not-allowed", _BY_POLICY, _FORBIDDEN, _TO
    ATTACHMENTS_NOT_ALLOWED = "attachments-not-allowed", _BY_POLICY, _FORBIDDEN, _ATTACHMENTS
    HTML_NOT_ALLOWED = "html-not-allowed", _BY_POLICY, _FORBIDDEN, Field("body_html", resend="html")
    DAILY_QUOTA = "daily-quota", Reply(452, "4.7.1"), HttpAnswer(429, "quota_exceeded")
    FROM_MISSING = "from-missing", _BY_POLICY, _INVALID, _FROM
    FROM_NOT_ONE = "from-not-one", _BY_POLICY, _INVALID, _FROM
    FROM_MALFORMED = "from-malformed", _BY_POLICY, _INVALID, _FROM
    FROM_RESTRICTED = "from-restricted", _BY_POLICY, _WRONG_DOMAIN, _FROM
    FROM_UNVERIFIED = "from-unverified", _BY_POLICY, _WRONG_DOMAIN, _FROM
    RECIPIENT_MALFORMED = "recipient-malformed", Reply(550, "5.1.3"), _INVALID, _TO
    RECIPIENT_SUPPRESSED = "recipient-suppressed", _BY_POLICY, _INVALID, _TO
    TOO_MANY_RECIPIENTS = "too-many-recipients", Reply(550, "5.5.3"), _INVALID, _TO
    TOO_LARGE = "too-large", _SIZE, _TOO_LARGE
    ATTACHMENTS_TOO_LARGE = "attachments-too-large", _SIZE, _TOO_LARGE, _ATTACHMENTS
    CONTROL_FIELD = "control-field", _CONTENT, _INVALID, Field("send_at", resend="scheduled_at")
    QUOTA = "quota", (_BY_POLICY, NOT_YET_PAID), HttpAnswer(402, "quota_exceeded")
    DUPLICATE_KEY = "duplicate-key", _BY_POLICY, HttpAnswer(409, "idempotency_conflict")
    RATE_LIMITED = "rate-limited", Reply(451, "4.7.1"), HttpAnswer(429, "rate_limited")
    SANDBOX_MIXED = "sandbox-mixed", _BY_POLICY, _INVALID, _TO
    BEYOND_LIMITS = "beyond-limits", _CONTENT, _INVALID
    CANNOT_CARRY = "cannot-carry", (_CONTENT, NOT_ASCII), _INVALID
    OURS = "ours", (Reply(451, "4.3.0"), COME_AGAIN), HttpAnswer(503, "unavailable")
    """Not the sender's fault: always a 4xx."""
