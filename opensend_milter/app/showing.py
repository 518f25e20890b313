"""The console's process: a Config in, pages over adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import get_args

from starlette.routing import BaseRoute

from opensend_milter.adapters.admin.console_actions import ConsoleActions
from opensend_milter.adapters.admin.overview import Overview
from opensend_milter.adapters.admin.verification import list_domains
from opensend_milter.adapters.dns import DnsResolver
from opensend_milter.adapters.postgres.console import PostgresVisitors
from opensend_milter.adapters.postgres.link import Role, conninfo_for
from opensend_milter.adapters.postgres.lookup.contents import PostgresContents
from opensend_milter.adapters.postgres.lookup.messages import PostgresMessages
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.app.certificates import pair_of
from opensend_milter.app.sender_records import token_for, wanted_for
from opensend_milter.config import Config, load
from opensend_milter.config.changes import Reads
from opensend_milter.core.actions import Act
from opensend_milter.core.dns_records import Record, records
from opensend_milter.core.errors import ConfigError
from opensend_milter.servers.console import site
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.forms import MOST_BYTES
from opensend_milter.servers.reloading import Reloading
from opensend_milter.servers.web import server as http_server
from opensend_milter.servers.web.server import show_certificate, tls_context

CONNECTIONS = 4
TIMEOUT_S = 30.0
"""A call to the database; as `why`, somebody waits for it."""
DNS_TIMEOUT_S, DNS_IN_ALL_S = 2.0, 4.0
READS = Reads(live=frozenset(), at_start=frozenset({"console", "database", "profile", "limits.failed_per_minute"}))
CERTIFICATE = frozenset({"tls", "smtp.hostname"})


def console(path: Path | None, ready: Callable[[], None]) -> None:
    """Show the console until SIGTERM."""
    config = load(path)
    settings = config.console
    if not settings.is_on:
        raise ConfigError("console.port: expected a port, or console.socket, got neither: the console is off")
    tls = tls_context(*pair_of(config, "console")) if settings.tls else None
    reloading = Reloading(path, config, READS if tls is None else Reads(CERTIFICATE, READS.at_start))

    def reload() -> None:
        reloading.on_hangup(lambda new: _show(tls, new))

    with shown(config) as routes:
        http_server.run(settings, routes, ready, max_body_bytes=MOST_BYTES, tls=tls, reload=reload, refuse=site.refuse)


@contextmanager
def shown(config: Config, nameserver: str = "") -> Iterator[Sequence[BaseRoute]]:
    """Lend the routes of all pages, and let go of the database at the end; `nameserver`: another than the system's."""
    # What messages say is read by another role: that of the console cannot.
    pool, bodies = _pool(config, "opensend_console", CONNECTIONS), _pool(config, "opensend_body_reader", 1)
    visitors, overview = PostgresVisitors(pool), Overview(pool.lend)
    entrance = Entrance(
        settings=config.console, store=visitors, pages=site.PAGES, failed_per_minute=config.limits.failed_per_minute
    )
    try:
        yield site.routes(
            entrance,
            messages=PostgresMessages(pool.lend, beside=config.profile == "opensend"),
            views=visitors,
            contents=PostgresContents(bodies.lend),
            lists=overview,
            flow=overview.flow,
            volume=overview.volume,
            look_up=lambda domain_id: _looked_up(config, pool, domain_id, nameserver),
            actions=ConsoleActions(_info(config, "opensend_console_actor")) if config.console.actions else None,
            # OpenSend's own worker delivers there, and heeds nothing of ours.
            acts=("suppress",) if config.profile == "opensend" else get_args(Act),
            taken=visitors.taken,
        )
    finally:
        pool.close()
        bodies.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """A domain, and its records as DNS has them now."""

    name: str
    status: str
    user_id: str | None
    records: Sequence[Record]


def _looked_up(config: Config, pool: Pool, domain_id: str, nameserver: str) -> LookedUp | None:
    with pool.lend() as connection:
        for domain in list_domains(connection):
            if domain.id == domain_id:
                wanted = wanted_for(config, connection, domain, token=token_for(config, connection, domain))
                break
        else:
            return None
    found = records(DnsResolver(nameserver, timeout_s=DNS_TIMEOUT_S, in_all_s=DNS_IN_ALL_S), wanted)
    return LookedUp(name=domain.name, status=domain.status, user_id=domain.user_id, records=found)


def _show(tls: SSLContext | None, config: Config) -> None:
    if tls:
        show_certificate(tls, *pair_of(config, "console"))


def _info(config: Config, role: Role) -> str:
    return conninfo_for(config.database.url, config.database.password_dir, role)


def _pool(config: Config, role: Role, connections: int) -> Pool:
    return Pool(_info(config, role), connections=connections, timeout_s=TIMEOUT_S, name=role.replace("_", "-"))
