"""The examination of a host: a Site in, every check out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from opensend_milter.adapters.admin.inspection import REACHABLE, Inspection
from opensend_milter.adapters.admin.rows import KeyChanges
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.admin.verification import list_domains
from opensend_milter.adapters.aws import sns_inspection, sqs_inspection
from opensend_milter.adapters.dns import DnsResolver
from opensend_milter.app.sender_records import wanted_for
from opensend_milter.config import Config
from opensend_milter.core.dns_records import RecordState, is_reserved, records
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Check, Seen, good, skipped, warning
from opensend_milter.core.model import UserId
from opensend_milter.host.examining.host_checks import Site, host_checks
from opensend_milter.host.examining.machine import room

DNS_TIMEOUT_S, DNS_LIFETIME_S = 2.0, 4.0
MOST_DOMAINS = 20
KEY_LIFETIME = timedelta(minutes=10)


@contextmanager
def examination(site: Site, nameserver: str = "") -> Iterator[list[Check]]:
    """Yield all checks; what they opened is closed afterwards."""
    config = site.config
    inspection = Inspection(config)
    try:
        yield [*host_checks(site), *_stored(config, inspection, nameserver)]
    finally:
        inspection.close()


def _stored(config: Config, inspection: Inspection, nameserver: str) -> Iterator[Check]:
    yield from inspection.checks()
    yield Check(
        name="database.space",
        why="a database whose disk is full takes no message",
        look=partial(_database_room, config, inspection),
        needs=REACHABLE,
    )
    yield from sqs_inspection.checks(config, inspection.oldest_s)
    yield from sns_inspection.checks(config)
    yield Check(
        name="domains.dns",
        why="receivers sort out mail whose domain has no SPF, DKIM or DMARC",
        look=partial(_domains, config, inspection, nameserver),
        needs=REACHABLE,
    )


def _database_room(config: Config, inspection: Inspection) -> Seen:
    directory = inspection.data_directory()
    if directory is None:
        return skipped("the database is on another host, or its directory is not ours to see")
    return room(directory, config.size.max_message_bytes)


def _domains(config: Config, inspection: Inspection, nameserver: str) -> Seen:
    connection = inspection.connection()
    named = [domain for domain in list_domains(connection) if domain.status == "verified"]
    asked = [domain for domain in named if not is_reserved(domain.name)]
    if not named:
        return skipped("no domain is verified yet")
    if not asked:
        return skipped("only domains that are in no public DNS")
    resolver = DnsResolver(nameserver, timeout_s=DNS_TIMEOUT_S, lifetime_s=DNS_LIFETIME_S)
    lacking, unknown = [], []
    for domain in asked[:MOST_DOMAINS]:
        found = [one for one in records(resolver, wanted_for(config, connection, domain)) if one.is_needed]
        unanswered = [one.seen for one in found if one.state is RecordState.UNKNOWN]
        unknown += unanswered
        if unanswered and len(unanswered) == len(found):
            break
        lacks = dict.fromkeys(one.kind for one in found if one.state in {RecordState.MISSING, RecordState.WRONG})
        if lacks:
            lacking.append(f"{domain.name}: {', '.join(lacks)}")
    shown = f"{min(len(asked), MOST_DOMAINS)} of {len(named)} domain(s) asked for"
    if lacking:
        return warning(f"missing or wrong: {'; '.join(lacking)}", "opensend-milter domain verify --all")
    if unknown:
        return skipped(unknown[0])
    return good(f"{shown}: what each needs of SPF, DKIM and DMARC is there")


@contextmanager
def made_key(store: AdminStore, user_id: str) -> Iterator[str]:
    """Lend a key that is revoked at the end, and ends by itself should we not live to do so."""
    key = store.create_key(
        name=f"doctor {secrets.token_hex(4)}", user_id=UserId(user_id), permission="full_access", domain=None
    )
    try:
        store.set_key(store.find_key(key.id), KeyChanges(expires_at=datetime.now(UTC) + KEY_LIFETIME))
        yield key.token
    finally:
        store.revoke_key(key.id)


def some_user(store: AdminStore) -> str:
    """Return a user that a key can be made for: of a verified domain, else any."""
    verified = [domain.user_id for domain in store.list_domains() if domain.status == "verified" and domain.user_id]
    owners = verified or [key.user_id for key in store.list_keys() if key.user_id]
    if not owners:
        raise UsageError("there is no user with a domain or a key yet: `opensend-milter domain add`")
    return owners[0]
