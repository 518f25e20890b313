"""What we need of OpenSend's tables: what our statements name, and what a row of ours leaves to the table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Profile = Literal["standalone", "opensend"]
Billing = Literal["none", "stripe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What we need of one table."""

    table: str
    columns: frozenset[str]
    filled: frozenset[str] = frozenset()
    """Columns to which a new row of ours always gives a value."""
    blank: frozenset[str] = frozenset()
    """Columns in which a new row of ours may say NULL, whatever their default is."""

    @property
    def is_written(self) -> bool:
        """We insert rows."""
        return bool(self.filled)


def _need(table: str, columns: str, *, filled: str = "", blank: str = "") -> Need:
    found = (frozenset(names.split()) for names in (f"{columns} {filled} {blank}", filled, blank))
    return Need(table=table, **dict(zip(("columns", "filled", "blank"), found, strict=True)))


_MAIL = (
    _need("api_keys", "id user_id name permission domain token_hash last_used_at created_at"),
    _need(
        "domains",
        "id name status user_id region ses_configuration_set_name track_opens track_clicks tracking_subdomain",
    ),
    _need(
        "emails",
        "sent_at provider_retry_count provider_last_attempted_at provider_next_retry_at provider_dead_lettered_at"
        " provider_last_error_code provider_last_error_message topic_id",
        filled="id from to cc bcc reply_to subject html text status tags headers attachments user_id created_at",
        blank="scheduled_at idempotency_key document",
    ),
    _need("email_events", "received_at source_id", filled="id type payload user_id", blank="email_id"),
    _need("email_suppressions", "user_id email reason"),
    _need("webhooks", "id user_id status event_types"),
    _need("webhook_deliveries", "", filled="id webhook_id event_id attempt status"),
)
"""Of every process, in both profiles."""
_DELIVERED_BY_US = (
    _need(
        "email_suppressions",
        "updated_at",
        filled="user_id email reason source_event_id source_email_id metadata",
        blank="source_message_id",
    ),
    _need("email_events", "", filled="source_id"),
    _need("webhooks", "url"),
    _need("webhook_deliveries", "status_code response_body attempted_at next_retry_at created_at"),
)
_LOGGED = (
    _need(
        "logs",
        "",
        filled="endpoint method status request_body response_body document user_id api_key_id",
    ),
)
_BILLED = (
    _need("plans", "id slug monthly_price_cents monthly_email_quota"),
    _need("subscriptions", "user_id plan_id status current_period_start current_period_end"),
    _need(
        "usage_periods",
        "",
        filled="user_id period_start period_end emails_sent last_increment_at",
        blank="included_email_quota usage_warning_80_notified_at usage_warning_100_notified_at",
    ),
)
_ADMINISTERED = (
    _need("user", "created_at", filled="id name email"),
    _need("api_keys", "", filled="name token_hash token_preview permission user_id", blank="domain"),
    _need(
        "domains",
        "created_at dkim_origin dkim_tokens dkim_selector custom_return_path",
        filled="name status user_id",
    ),
    _need("email_suppressions", "suppressed_at updated_at source_email_id", filled="user_id email reason"),
    _need("webhooks", "created_at", filled="url event_types user_id"),
    _need("webhook_deliveries", "status_code attempted_at next_retry_at"),
)


def needs(*, profile: Profile, billing: Billing, administration: bool = False) -> tuple[Need, ...]:
    """Return what the processes need, one a table; with `administration` what our commands need as well."""
    asked = [
        *_MAIL,
        *(_LOGGED if profile == "opensend" else _DELIVERED_BY_US),
        *(_BILLED if billing == "stripe" else ()),
        *(_ADMINISTERED if administration else ()),
    ]
    return tuple(_together(asked))


def needs_of_all(*, billing: bool) -> tuple[Need, ...]:
    """Return what is granted: rights are given for both profiles, so that the switch is a line of configuration."""
    asked = [*_MAIL, *_LOGGED, *_DELIVERED_BY_US, *_ADMINISTERED, *(_BILLED if billing else ())]
    return tuple(_together(asked))


def _together(asked: Iterable[Need]) -> Iterator[Need]:
    by_table: dict[str, list[Need]] = {}
    for one in asked:
        by_table.setdefault(one.table, []).append(one)
    for table, some in by_table.items():
        yield Need(
            table=table,
            columns=frozenset().union(*(one.columns for one in some)),
            filled=frozenset().union(*(one.filled for one in some)),
            blank=frozenset().union(*(one.blank for one in some)),
        )
