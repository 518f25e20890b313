"""Domains as their verification sees them: by the owner of the tables, or by the worker, which a timer runs as."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from psycopg import errors
from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.admin.typed import domain_name
from opensend_milter.adapters.postgres.link import Connection, Role, connect, conninfo_for, statements
from opensend_milter.config import Database
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.dns_records import SesIdentity, ownership_token
from opensend_milter.core.errors import ConfigError, StoreUnavailable, UsageError
from opensend_milter.core.ids import is_end, range_of

SQL = statements("verification")
STAND_IN: Role = "opensend_worker"
SES_KEEPS_KEYS = "AWS_SES"
"""In `dkim_origin`; anything else: SES was given a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One user's domain."""

    id: str
    name: str
    user_id: str | None
    status: str


def connect_as_owner(database: Database, *, application_name: str) -> Connection:
    """Connect as the configured URL says; where that fails and roles have passwords, as the worker."""
    try:
        return connect(conninfo_for(database.url, None, None), application_name=application_name)
    except StoreUnavailable:
        if database.password_dir:
            with suppress(StoreUnavailable, ConfigError):
                info = conninfo_for(database.url, database.password_dir, STAND_IN)
                return connect(info, application_name=application_name)
        raise


def list_domains(connection: Connection, user_id: str | None = None) -> list[Domain]:
    """List domains of one user or of all, by name."""
    with explained(), connection.cursor(row_factory=class_row(Domain)) as cursor:
        return cursor.execute(SQL["domains"], {"user_id": user_id}).fetchall()


def find_domain(connection: Connection, name: str, user_id: str | None = None) -> Domain:
    """Return the one domain of this name, or whose id begins or ends like this."""
    is_id = range_of(name) is not None or is_end(name)
    wanted = name.strip().lower() if is_id else domain_name(name)
    listed = list_domains(connection, user_id)
    found = [
        domain
        for domain in listed
        if domain.name.lower() == wanted or (is_id and (domain.id.startswith(wanted) or domain.id.endswith(wanted)))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{domain.id} (user {domain.user_id})" for domain in found)
        raise UsageError(f"{len(found)} domains are called {wanted}, name one by its id: {choices}")
    first = sorted(listed, key=lambda domain: domain.status != "verified")[:5]
    known = ", ".join(domain.name for domain in first)
    raise UsageError(f"no domain {wanted}{f' of user {user_id!r}' if user_id else ''}; known are: {known or 'none'}")


def courier_of(connection: Connection, domain: Domain) -> CourierName | None:
    """Return the courier of a domain that has one of its own."""
    with explained():
        row = connection.execute(SQL["courier"], {"id": domain.id}).fetchone()
    return cast("CourierName", row[0]) if row and row[0] else None


def ses_identity_of(connection: Connection, domain: Domain) -> SesIdentity | None:
    """Return what its row holds of Amazon SES; None: this role may not read that."""
    with explained():
        try:
            row = connection.execute(SQL["ses_identity"], {"id": domain.id}).fetchone()
        except errors.InsufficientPrivilege:
            return None
    if row is None:
        return SesIdentity()
    origin, tokens, selector, return_path = row
    keeps_keys = origin == SES_KEEPS_KEYS
    return SesIdentity(
        tokens=tuple(map(str, tokens)) if keeps_keys and isinstance(tokens, list) else (),
        selector="" if keeps_keys else selector or "",
        return_path=return_path or "",
    )


def token_of(connection: Connection, user_id: str, domain: str) -> str:
    """Return the ownership token of a user's domain in this installation."""
    with explained():
        row = connection.execute(SQL["ownership"], {"user_id": user_id, "domain": domain}).fetchone()
    if row is None or row[0] is None:
        raise StoreUnavailable("opensend_milter.secrets is empty: `db migrate` fills it")
    return ownership_token(bytes(row[0]))


def set_status(connection: Connection, domain: Domain, status: str) -> bool:
    """Note how a domain stands; False: this role may not."""
    with explained():
        try:
            connection.execute(SQL["set_status"], {"id": domain.id, "status": status})
        except errors.InsufficientPrivilege:
            return False
    return True
