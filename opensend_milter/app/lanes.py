"""The lanes that messages are decided in, whichever door they come by: small ones in batches, large ones one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.app.fitting import watched
from opensend_milter.config import Config, Milter as MilterSettings
from opensend_milter.core.couriers import Carries, carried_by
from opensend_milter.core.intake import Gatherer, Intake
from opensend_milter.core.model import Limits, Message, Outcome
from opensend_milter.core.policy import Policy
from opensend_milter.core.ports import IntakeStore

BATCH = 64


BESIDE_OPENSEND = Carries(max_line_octets=None, eight_bit=True, utf8_addresses=False)
"""Its ingester writes the message again: lines and 8-bit content are its business."""


def policy_of(config: Config) -> Policy:
    """Return the rules that the configuration asks for."""
    size = config.size
    couriers = carried_by(eight_bit_relay=config.relay.eight_bit) if config.profile == "standalone" else {}
    limits = Limits(
        max_message_bytes=size.max_message_bytes,
        max_attachment_bytes=size.max_attachment_bytes,
        max_recipients=size.max_recipients,
        max_header_bytes=size.max_header_bytes,
        max_header_fields=size.max_header_fields,
        max_addresses=size.max_addresses,
        max_parts=size.max_parts,
        max_depth=size.max_depth,
    )
    return Policy(
        limits=limits,
        carries=couriers[config.delivery.courier] if config.profile == "standalone" else BESIDE_OPENSEND,
        couriers=couriers,
        sender_domains=config.policy.sender_domains,
        on_suppressed=config.policy.on_suppressed,
        sandbox_addresses=config.profile == "opensend",
    )


@dataclass(frozen=True, slots=True)
class Lanes:
    """Two ways in: a large message never makes small ones wait in its batch."""

    small: Gatherer
    large: Gatherer
    large_above_bytes: int
    stores: tuple[PostgresIntakeStore, ...]

    def accept(self, message: Message) -> Outcome:
        """Wait for the outcome of one message."""
        return self._lane(message.size).accept(message)

    def accept_all(self, messages: Sequence[Message]) -> Sequence[Outcome | None]:
        """Wait for the outcome of messages that are taken all or not at all."""
        return self._lane(sum(message.size for message in messages)).accept_all(messages)

    def _lane(self, size: int) -> Gatherer:
        return self.large if size > self.large_above_bytes else self.small

    def close(self) -> None:
        """Finish what was handed in, then let go."""
        for gatherer in (self.small, self.large):
            gatherer.stop()
        for store in self.stores:
            store.close()


def open_lanes(config: Config, role: link.Role = "opensend_milter", tables: link.Tables | None = None) -> Lanes:
    """Start the two threads that decide, each with a connection of its own."""
    settings = config.milter
    info = link.conninfo_for(config.database.url, config.database.password_dir, role)
    policy = policy_of(config)
    habits = Habits(
        duplicate_window=timedelta(seconds=config.policy.duplicate_window_s),
        beside_opensend=config.profile == "opensend",
        billing=config.billing == "stripe",
    )
    tables = tables or watched(config)
    # A large message waits for others of its kind, one at a time: that is slow, not stuck.
    lanes = (
        ("opensend-intake", BATCH, settings.soft_timeout_s, settings.hard_timeout_s),
        ("opensend-intake-large", 1, settings.hard_timeout_s, settings.hard_timeout_s * 2),
    )
    opened = [
        _open_lane(info, policy, habits, settings, tables, name=name, at_most=at_most, soft_s=soft_s, hard_s=hard_s)
        for name, at_most, soft_s, hard_s in lanes
    ]
    (small, small_store), (large, large_store) = opened
    return Lanes(small, large, settings.spool_above_bytes, (small_store, large_store))


def _open_lane(
    info: str,
    policy: Policy,
    habits: Habits,
    settings: MilterSettings,
    tables: link.Tables,
    *,
    name: str,
    at_most: int,
    soft_s: float,
    hard_s: float,
) -> tuple[Gatherer, PostgresIntakeStore]:
    postgres_store = PostgresIntakeStore(info, habits, name=name, timeout_s=settings.soft_timeout_s, tables=tables)
    store: IntakeStore = postgres_store
    gatherer = Gatherer(
        Intake(store, policy),
        name=name,
        window_s=settings.gather_window_ms / 1000,
        at_most=at_most,
        soft_s=soft_s,
        hard_s=hard_s,
    )
    gatherer.start()
    return gatherer, postgres_store
