"""The milter: a Config in, two lanes that decide behind a socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.adapters.prometheus import Together
from opensend_milter.app.fitting import watched
from opensend_milter.app.limiting import limited, open_throttle
from opensend_milter.config import Config, Milter as MilterSettings, load
from opensend_milter.config.changes import Reads
from opensend_milter.core import counting
from opensend_milter.core.couriers import Carries, carried_by
from opensend_milter.core.errors import ConfigError, StoreUnavailable, TablesDiffer
from opensend_milter.core.intake import Gatherer, Intake
from opensend_milter.core.model import Limits, Message, Outcome
from opensend_milter.core.policy import Policy
from opensend_milter.core.ports import IntakeStore
from opensend_milter.servers import metrics_page
from opensend_milter.servers.milter import Callbacks, Door, MilterProcess, OpenDoor, open_socket
from opensend_milter.servers.reloading import Reloading, write_log_as
from opensend_milter.servers.supervisor import Line, Supervisor
from opensend_milter.servers.unix_socket import group_of

log = logging.getLogger(__name__)

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
        return (self.large if message.size > self.large_above_bytes else self.small).accept(message)

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
        logs=config.profile == "opensend",
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


READS = Reads(
    live=frozenset(
        {
            *("profile", "billing", "database", "size", "policy", "limits", "relay.eight_bit", "delivery.courier"),
            *("milter.soft_timeout_s", "milter.hard_timeout_s", "milter.gather_window_ms"),
            *("milter.spool_dir", "milter.spool_above_bytes"),
        }
    ),
    at_start=frozenset({"milter", "metrics.serve_port"}),
)


def serve(path: Path | None) -> None:
    """Run the milter until SIGTERM."""
    config = load(path)
    group = group_of(config.milter.socket_group, key="milter.socket_group")
    _make_spool(config)
    # Before the socket is opened: the page's process must not hold it.
    with _counted(config) as join:
        _serve(path, config, group, join)


def _serve(path: Path | None, config: Config, group: int | None, join: Callable[[], None]) -> None:
    settings = config.milter
    _await_database(config)
    callbacks = Callbacks()
    callbacks.register("opensend-milter")
    descriptor = open_socket(settings.socket, group)
    inode = settings.socket.stat().st_ino
    reloading = Reloading(path, config, READS)

    def reopen() -> OpenDoor:
        # Checked by the parent a moment ago.
        changed = load(path)
        write_log_as(changed.log)
        return _open_door(changed)

    def child(line: Line) -> None:
        join()
        # One that takes a dead one's place must not stumble over a file that nobody has asked to be read.
        opened = _open_door(reloading.config)
        MilterProcess(callbacks, descriptor, opened, reopen, settings.drain_s).run(line)

    supervisor = Supervisor(
        child,
        count=settings.children(),
        drain_s=settings.drain_s,
        reload=lambda: reloading.reload(_make_spool),
        healthy=lambda: settings.socket.exists() and settings.socket.stat().st_ino == inode,
    )
    log.info("listening on %s", settings.socket)
    supervisor.run()
    if settings.socket.exists() and settings.socket.stat().st_ino == inode:
        settings.socket.unlink()


def _make_spool(config: Config) -> None:
    place = config.milter.spool_dir
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"milter.spool_dir: {place}: {error.strerror}") from error


@contextmanager
def _counted(config: Config) -> Iterator[Callable[[], None]]:
    """Show what all processes count; yield what each child calls first."""
    if not config.metrics.serve_port:
        yield lambda: None
        return
    counts = Together(counting.AT_THE_DOOR, config.milter.spool_dir / "metrics")
    with metrics_page.shown_beside(config.metrics.serve_port, counts.page, key="metrics.serve_port"):
        yield counts.join


def _open_door(config: Config) -> OpenDoor:
    lanes = open_lanes(config)
    throttle = open_throttle(config, "opensend_milter")

    def close() -> None:
        lanes.close()
        throttle.stop()

    door = Door(
        accept=partial(limited, throttle, lanes.accept),
        spool_dir=config.milter.spool_dir,
        spool_above_bytes=config.milter.spool_above_bytes,
        max_message_bytes=config.size.max_message_bytes,
    )
    return OpenDoor(door=door, longest_wait_s=config.milter.hard_timeout_s * 2, close=close)


def _await_database(config: Config) -> None:
    """Listen only when the database is ready: until then Postfix answers 451 by itself.

    One whose tables differ is ready: it may be mended any time, and meanwhile we say 451.
    """
    info = link.conninfo_for(config.database.url, config.database.password_dir, "opensend_milter")
    said = False
    while True:
        try:
            with link.connect(info, application_name="opensend-serve") as connection, link.store_errors():
                watched(config).check(connection)
        except TablesDiffer:
            return
        except StoreUnavailable as error:
            if not said:
                log.warning("waiting for the database: %s", error)
                said = True
            time.sleep(1)
        else:
            return
