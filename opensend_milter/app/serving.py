"""The milter: a Config in, two lanes that decide behind a socket."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.prometheus import Together
from opensend_milter.app.fitting import watched
from opensend_milter.app.lanes import open_lanes
from opensend_milter.app.limiting import limited, open_throttle
from opensend_milter.app.succession import Deciding, Succession
from opensend_milter.config import Config, load
from opensend_milter.config.changes import Reads
from opensend_milter.core import counting
from opensend_milter.core.errors import ConfigError, StoreUnavailable, TablesDiffer
from opensend_milter.core.links import base_of
from opensend_milter.core.model import Message, Outcome
from opensend_milter.servers import metrics_page
from opensend_milter.servers.memory import give_back_large_blocks
from opensend_milter.servers.milter import Callbacks, Door, MilterProcess, open_socket
from opensend_milter.servers.orphans import Orphanage
from opensend_milter.servers.reloading import Reloading, write_log_as
from opensend_milter.servers.supervisor import Line, Supervisor
from opensend_milter.servers.unix_socket import group_of

log = logging.getLogger(__name__)

READS = Reads(
    live=frozenset(
        {
            *("profile", "billing", "database", "size", "policy", "limits", "relay.eight_bit", "delivery.courier"),
            *("milter.soft_timeout_s", "milter.hard_timeout_s", "milter.gather_window_ms"),
            *("milter.spool_dir", "milter.spool_above_bytes", "http.public_url"),
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
    orphanage = Orphanage(settings.socket)

    def child(line: Line) -> None:
        join()
        give_back_large_blocks()
        announcing = orphanage.announcing()
        announcing.start()
        callbacks.connected = announcing.connected
        # One that takes a dead one's place must not stumble over a file that nobody has asked to be read.
        current = reloading.config
        succession = Succession(_deciding(current))

        def reopen(order: bytes) -> Door:
            nonlocal current
            changed: Config = pickle.loads(order)  # noqa: S301  # our parent's
            write_log_as(changed.log)
            if changed != current:
                succession.replace(_deciding(changed))
                current = changed
            return _door(current, succession.accept)

        door = _door(current, succession.accept)
        MilterProcess(
            callbacks, descriptor, door=door, reopen=reopen, close=succession.close, drain_s=settings.drain_s
        ).run(line)

    def reload() -> bytes | None:
        # What the parent has checked, not what the file says by the time that a child reads it.
        return pickle.dumps(reloading.config) if reloading.reload(_make_spool) else None

    def in_place() -> bool:
        return settings.socket.exists() and settings.socket.stat().st_ino == inode

    def healthy() -> bool:
        orphanage.see_to_it()
        return in_place()

    supervisor = Supervisor(
        child,
        count=settings.children(),
        drain_s=settings.drain_s,
        reload=reload,
        healthy=healthy,
    )
    log.info("listening on %s", settings.socket)
    supervisor.run()
    orphanage.close()
    if in_place():
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


def _deciding(config: Config) -> Deciding[Message, Outcome]:
    lanes = open_lanes(config)
    throttle = open_throttle(config, "opensend_milter")

    def close() -> None:
        lanes.close()
        throttle.stop()

    return Deciding(partial(limited, throttle, lanes.accept), close)


def _door(config: Config, accept: Callable[[Message], Outcome]) -> Door:
    return Door(
        accept=accept,
        spool_dir=config.milter.spool_dir,
        spool_above_bytes=config.milter.spool_above_bytes,
        max_message_bytes=config.size.max_message_bytes,
        base=base_of(config.http.public_url),
    )


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
