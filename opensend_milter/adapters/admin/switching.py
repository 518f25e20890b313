"""OpenSend's database as it is before we are put beside it: read in one transaction that cannot write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from opensend_milter.adapters.postgres.link import (
    Connection,
    connect,
    conninfo_for,
    statements,
    store_errors,
)
from opensend_milter.adapters.schema import facts, migrations, roles
from opensend_milter.adapters.schema.fitting import differences
from opensend_milter.adapters.schema.needs import needs, needs_of_all
from opensend_milter.config import Config
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.findings import Seen, problem, warning
from opensend_milter.core.model import Subscription

SQL = {**statements("switching"), **statements("billing")}
TIMEOUT_S = 5.0
MOST_COUNTED = 10_000
MOST_LISTED = 20
_READS: Mapping[str, str] = {
    "emails": "id user_id from to cc bcc reply_to html text attachments status created_at",
    "api_keys": "id name token_preview permission domain user_id",
    "domains": "id name status user_id",
    "email_suppressions": "user_id email reason suppressed_at",
}
_READS_FOR_BILLING: Mapping[str, str] = {
    "subscriptions": "user_id plan_id status current_period_end",
    "plans": "id slug monthly_price_cents",
}
_UNIQUE: Mapping[str, tuple[str, ...]] = {
    "api_keys": ("token_hash",),
    "emails": ("user_id", "idempotency_key"),
    "email_suppressions": ("user_id", "email"),
    "email_events": ("source_id",),
}
"""What keeps a message from being stored twice, and a key, an address or an event from being there twice."""


class UntoldError(Exception):
    """A question got no answer; what to show instead."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.text)
        self.seen = seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What answers."""

    version: int
    database: str
    encoding: str
    user: str
    missing: tuple[str, ...]
    """Tables without which it is no OpenSend."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A right that this role does not have, and the statement that gives it."""

    right: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How this database stands to the snapshot of OpenSend that we know."""

    tables: int
    differing: tuple[str, ...]
    more: tuple[facts.Column, ...]
    not_unique: tuple[facts.Index, ...]


@dataclass(frozen=True, slots=True)
class Migrating:
    """What this role has of what `db migrate` needs."""

    is_superuser: bool
    creates_roles: bool
    has_schema: bool
    creates_schemas: bool
    is_standby: bool
    other_owners: list[str]
    roles: list[str]
    """Of ours, that exist already."""
    not_its_roles: list[str]
    """Of those, the ones that it may not change."""


@dataclass(frozen=True, slots=True)
class BoundKey:
    """A key that is bound to a domain."""

    name: str
    preview: str
    permission: str
    user_id: str
    restriction: str
    domain: str | None
    """None: its user has no such domain."""


@dataclass(frozen=True, slots=True)
class SentRow:
    """One row of `emails`, without its content."""

    id: str
    user_id: str | None
    sender: str
    recipients: list[str | None] | None
    """To, cc and bcc, each once; None where they are no lists, an element where it is no text."""
    reply_to: list[str | None] | None
    body_bytes: int
    attachment_bytes: int
    """As stored: compressed."""


Domain = tuple[str, str, str]
"""User, and the domain with A-labels and with U-labels."""
Spelled = tuple[int, str, str, str, str]
"""Place in a list, the row's id, its user, a recipient, and how a suppression list may spell that."""


class SwitchingReader:
    """One connection and one transaction, opened when first needed; each question is a savepoint of its own."""

    def __init__(self, config: Config, *, timeout_s: float) -> None:
        """`timeout_s`: for each statement."""
        self._config = config
        self._timeout_s = timeout_s
        self._connection: Connection | None = None

    def close(self) -> None:
        """Let go of the connection; there is nothing to be committed."""
        if self._connection is not None:
            self._connection.close()

    def _opened(self) -> Connection:
        if self._connection is None:
            info = conninfo_for(self._config.database.url, None, None)
            connection = connect(info, application_name="opensend-doctor", autocommit=False)
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with store_errors():
                connection.execute(SQL["limit_time"], {"limit": f"{self._timeout_s * 1000:.0f}ms"})
            self._connection = connection
        return self._connection

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        """Lend the connection for one question; raise UntoldError or StoreUnavailable."""
        connection = self._opened()
        try:
            with connection.transaction():
                yield connection
        except errors.QueryCanceled as error:
            shown = f"no answer within {self._timeout_s:g} s"
            raise UntoldError(warning(shown, "run it when less is going on, or on a standby")) from error
        except errors.InsufficientPrivilege as error:
            raise UntoldError(self._refused(error.diag.message_primary or "")) from error
        except psycopg.Error as error:
            if connection.closed:
                raise StoreUnavailable("the connection to the database was lost") from error
            raise UntoldError(problem(f"cannot be asked: {error.diag.message_primary or error}")) from error

    def _refused(self, message: str) -> Seen:
        """Say which right is missing, and which statement gives it."""
        lacking = self.lacking()
        named = [one for one in lacking if one.right.rpartition(".")[2] in message.split()]
        return problem(f"{message} (as {self._opened().info.user})", "\n".join(one.mend for one in named or lacking))

    def _rows(self, name: str, **values: object) -> list[TupleRow]:
        with self._asking() as connection:
            return connection.execute(SQL[name], values or None).fetchall()

    def server(self) -> Server:
        """Say what answers, and as whom we ask."""
        ((database, encoding, user, tables),) = self._rows("server", tables=list(migrations.OPENSEND_CORE))
        return Server(
            version=self._opened().info.server_version,
            database=database,
            encoding=encoding,
            user=user,
            missing=tuple(sorted(set(migrations.OPENSEND_CORE) - set(tables))),
        )

    def lacking(self) -> list[Lack]:
        """Return the rights that these questions need and this role lacks."""
        billing = _READS_FOR_BILLING if self._config.billing == "stripe" else {}
        asked = {**_READS, **billing, "usage_periods": "user_id"}
        pairs = [(table, column) for table, columns in asked.items() for column in columns.split()]
        tables, columns = zip(*pairs, strict=True)
        return [Lack(*row) for row in self._rows("lacking", tables=list(tables), columns=list(columns))]

    def standing(self) -> Standing:
        """Compare the tables with the snapshot."""
        known = facts.opensend()
        with self._asking() as connection:
            found = facts.tables_in(connection, known.names)
        unique = {(table, *columns) for table, columns in self._rows("unique_indexes", tables=list(_UNIQUE))}
        expected = {(column.table, column.name) for column in known.columns}
        return Standing(
            tables=len(known.names),
            differing=tuple(_differing(known, found)),
            more=tuple(column for column in found.columns if (column.table, column.name) not in expected),
            not_unique=tuple(
                index
                for index in known.indexes
                if (columns := _UNIQUE.get(index.table))
                and index.definition == f"btree ({', '.join(columns)})"
                and index.table in found.names
                and (index.table, *sorted(columns)) not in unique
            ),
        )

    def differences(self) -> list[str]:
        """Return what our statements need and the tables have not."""
        needed = needs(profile="opensend", billing=self._config.billing, administration=True)
        with self._asking() as connection:
            return differences(connection, needed)

    def misfits(self) -> list[str]:
        """Return why `db migrate` refuses these tables."""
        needed = needs_of_all(billing=self._has_billing())
        with self._asking() as connection:
            return differences(connection, needed)

    def migrating(self) -> Migrating:
        """Say what this role may; raise UsageError for roles of our names that are somebody else's."""
        with self._asking() as connection:
            roles.check(connection)
        ours = [roles.KEY_READER, *roles.LOGIN_ROLES]
        ((*values,),) = self._rows("migrating", tables=list(migrations.OPENSEND_TABLES), roles=ours)
        return Migrating(*values)

    def key_counts(self) -> tuple[int, int]:
        """Return how many keys there are, and how many have no user."""
        ((every, without_user),) = self._rows("key_counts")
        return every, without_user

    def bound_keys(self) -> list[BoundKey]:
        """Return the keys that are bound to a domain."""
        return [BoundKey(*row) for row in self._rows("bound_keys", most=MOST_COUNTED)]

    def verified(self, domains: Sequence[Domain]) -> set[tuple[str, str]]:
        """Return which of these are verified, each as user and domain with A-labels."""
        if not domains:
            return set()
        users, ascii_domains, unicode_domains = map(list, zip(*domains, strict=True))
        return {
            (user_id, domain)
            for user_id, domain in self._rows(
                "verified", user_ids=users, ascii_domains=ascii_domains, unicode_domains=unicode_domains
            )
        }

    def verified_count(self) -> int:
        """Return how many domains are verified."""
        ((count,),) = self._rows("verified_count")
        return int(count)

    def shared_domains(self) -> tuple[int, list[tuple[str, int]]]:
        """Return how many names several users have, and the first of them with how many users."""
        rows = self._rows("shared_domains", most=MOST_LISTED)
        return rows[0][2] if rows else 0, [(name, users) for name, users, _ in rows]

    def newest(self, *, rows: int, recipients: int) -> list[SentRow]:
        """Return the newest rows, of each at most so many recipients."""
        return [SentRow(*row) for row in self._rows("newest", rows=rows, recipients=recipients)]

    def suppressed(self, spelled: Sequence[Spelled]) -> dict[int, list[tuple[str, str]]]:
        """Return, by place, recipients that were suppressed when their row was made, each with the reason."""
        found: dict[int, list[tuple[str, str]]] = {}
        if spelled:
            places, ids, users, recipients, spellings = map(list, zip(*spelled, strict=True))
            values = {"places": places, "ids": ids, "user_ids": users}
            for place, recipient, reason in self._rows(
                "suppressed", **values, recipients=recipients, spellings=spellings
            ):
                found.setdefault(place, []).append((recipient, reason))
        return found

    def subscriptions(self, user_ids: Sequence[str]) -> dict[str, Subscription]:
        """Return what OpenSend's billing says of users."""
        return dict(self._rows("subscriptions_of", user_ids=list(user_ids)))

    def seems_to_bill(self) -> bool:
        """Tell whether anything was ever counted for a bill."""
        return self._has_billing() and self._rows("bills") == [(True,)]

    def _has_billing(self) -> bool:
        return self._rows("has_billing") == [(True,)]

    def late(self) -> int:
        """Return how many rows have been queued for more than ten minutes."""
        ((count,),) = self._rows("late", most=MOST_COUNTED)
        return int(count)


def _differing(known: facts.Tables, found: facts.Tables) -> Iterator[str]:
    here = {(column.table, column.name): column for column in found.columns}
    yield from (f"{table}: there is no such table" for table in sorted(known.names - found.names))
    for wanted in known.columns:
        if wanted.table in found.names:
            yield from _differing_column(wanted, here.get((wanted.table, wanted.name)))


def _differing_column(wanted: facts.Column, here: facts.Column | None) -> Iterator[str]:
    name = f"{wanted.table}.{wanted.name}"
    if here is None:
        yield f"{name} is missing here, {wanted.type} expected"
        return
    if here.type != wanted.type:
        yield f"{name} is {here.type} here, {wanted.type} expected"
    if here.nullable != wanted.nullable:
        null = {True: "null", False: "not null"}
        yield f"{name} is {null[here.nullable]} here, {null[wanted.nullable]} expected"
    if here.default != wanted.default:
        yield f"{name} has {_default(here)} here, {_default(wanted)} expected"


def _default(column: facts.Column) -> str:
    return f"default {column.default}" if column.default else "no default"
