"""Numbered SQL files -> one database: OpenSend's shapes where there is no OpenSend, our schema, the roles."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Literal, LiteralString

from psycopg import errors

from opensend_milter.adapters.postgres.link import Connection, Role, connect, conninfo_for, is_pooled, store_errors
from opensend_milter.adapters.schema import facts, roles
from opensend_milter.adapters.schema.fitting import differences
from opensend_milter.adapters.schema.needs import needs_of_all
from opensend_milter.core.errors import UsageError

LOCK_KEY = int.from_bytes(b"opensend")
"""One runner at a time in one database; a second one waits."""
OLDEST_SERVER = 13_00_00
OPENSEND_CORE = ("api_keys", "domains", "email_events", "email_suppressions", "emails")
"""What we need of OpenSend; without all of these it is no OpenSend database."""
OPENSEND_TABLES = (*OPENSEND_CORE, "logs", "user", "webhook_deliveries", "webhooks")

MigrationState = Literal["applied", "pending", "changed", "unknown"]
_Owner = Literal["opensend", "ours"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus:
    """One migration and where it stands."""

    name: str
    state: MigrationState
    """`changed`: the file is not the one that was applied; `unknown`: a newer program applied it."""
    applied_at: datetime | None


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    statements: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Record:
    sha256: str
    applied_at: datetime


TRIES = 100
PAUSE_S = 1.0
"""In which mail flows."""
_PATIENCE: LiteralString = "SET LOCAL lock_timeout = '1500ms'"
"""Clients hear nothing of less than two seconds; and one second is how long Postgres lets its own vacuum go on."""
RIGHTS = "rights"
"""What roles may do: given anew at each run, and listed like a migration."""
NO_WAY_BACK = "nothing takes a migration back, but for a dump from before: pg_dump first"


def _to_nobody(_text: str) -> None:
    """Take what is said of how far it is, where nobody watches."""


def init(
    url: str,
    password_dir: Path | None,
    *,
    actions: bool = False,
    new_passwords: bool = False,
    say: Callable[[str], None] = _to_nobody,
) -> list[str]:
    """Make a database that has no OpenSend ready; return the names of the migrations applied.

    `say`: hears how far it is. `actions`: with the rights for those of the console. `new_passwords`: also where roles
    have one that is not in the directory, so that other hosts are locked out.
    """
    with _locked(url) as connection:
        records = _records(connection)
        foreign = [] if _made_by_us(records) else _tables(connection, OPENSEND_TABLES)
        if foreign:
            raise UsageError(
                f"this database has tables that `db init` did not make: {', '.join(foreign)}; "
                "beside OpenSend use `db migrate`, otherwise an empty database"
            )
        return _bring_up(
            connection, ("opensend", "ours"), records, password_dir, say, actions=actions, new_passwords=new_passwords
        )


def migrate(
    url: str,
    password_dir: Path | None,
    *,
    actions: bool = False,
    new_passwords: bool = False,
    say: Callable[[str], None] = _to_nobody,
) -> list[str]:
    """Put our schema beside OpenSend's, or bring it up to date; return the names of the migrations applied.

    A table of OpenSend's is never altered: our roles get rights on it, nothing else. In a database that `init` made,
    this is the same as `init`.
    """
    with _locked(url) as connection:
        records = _records(connection)
        missing = sorted(set(OPENSEND_CORE) - set(_tables(connection, OPENSEND_CORE)))
        if missing:
            raise UsageError(
                f"this is no OpenSend database: schema public has no table {', '.join(missing)}; "
                "without OpenSend use `db init`"
            )
        beside = not _made_by_us(records)
        if beside:
            _refuse_misfits(connection)
        return _bring_up(
            connection, _owners(beside=beside), records, password_dir, say, actions=actions, new_passwords=new_passwords
        )


def _refuse_misfits(connection: Connection) -> None:
    """Refuse tables on which we would not work: before anything is changed."""
    billing = bool(_tables(connection, ["usage_periods"]))
    found = differences(connection, needs_of_all(billing=billing))
    if found:
        lines = "\n".join(f"tables: {line}" for line in found)
        raise UsageError(f"{lines}\nnothing was changed: this version knows OpenSend as of {facts.SNAPSHOT}")


def status(url: str, *, actions: bool = False) -> list[MigrationStatus]:
    """Compare the files with what the database has recorded; change nothing.

    `actions`: the rights are to be those with actions of the console.
    """
    with _connected(url) as connection:
        records = _records(connection)
        beside = not _made_by_us(records) and bool(_tables(connection, OPENSEND_CORE))
        granted_at = roles.granted_at(connection, actions=actions)
    files = {file.name: file for owner in _owners(beside=beside) for file in _files(owner)}
    return [
        MigrationStatus(
            name=name,
            state=_state(files.get(name), records.get(name)),
            applied_at=records[name].applied_at if name in records else None,
        )
        for name in [*files, *(name for name in records if name not in files)]
    ] + [MigrationStatus(name=RIGHTS, state="applied" if granted_at else "pending", applied_at=granted_at)]


def shipped(*, beside: bool, actions: bool) -> tuple[str, ...]:
    """Name all that this version brings about; `beside`: OpenSend, which makes its own tables."""
    return (*(file.name for owner in _owners(beside=beside) for file in _files(owner)), roles.shipped(actions=actions))


def warning(url: str) -> str:
    """Say which migrations a database in use is about to get, and that there is no way back; "": none."""
    found = [one for one in status(url) if one.name != RIGHTS]
    pending = [one.name for one in found if one.state == "pending"]
    if not pending or all(one.state == "pending" for one in found):
        return ""
    return "\n".join([*(f"+ migration {name}" for name in pending), NO_WAY_BACK])


def _owners(*, beside: bool) -> tuple[_Owner, ...]:
    return ("ours",) if beside else ("opensend", "ours")


def _state(file: _File | None, record: _Record | None) -> MigrationState:
    if file is None:
        return "unknown"
    if record is None:
        return "pending"
    return "applied" if record.sha256 == file.sha256 else "changed"


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    with (
        store_errors(),
        connect(conninfo_for(url, None, None), application_name="opensend-milter-db") as connection,
        _explained(),
    ):
        yield connection


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise UsageError(
            f"{error.diag.message_primary}; connect as the owner of the database and its tables, with CREATEROLE and, "
            "where another role made ours, ADMIN OPTION on them; or as a superuser"
        ) from error
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.DuplicateTable) as error:
        raise UsageError(f"the tables are not those that this program knows: {error.diag.message_primary}") from error


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    with _connected(url) as connection:
        _check_server(connection)
        if is_pooled(connection):
            raise UsageError("database.url leads to a pooler, where a lock is nobody's: name Postgres itself")
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])  # closing the connection gives it back
        yield connection


def _check_server(connection: Connection) -> None:
    if connection.info.server_version < OLDEST_SERVER:
        raise UsageError(f"PostgreSQL {OLDEST_SERVER // 10_000} or newer is needed")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UsageError(f"the database's encoding is {encoding}: make it with ENCODING 'UTF8' TEMPLATE template0")


def _tables(connection: Connection, names: Sequence[str]) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relname = ANY (%s)"
        " ORDER BY relname",
        [list(names)],
    )
    return [str(name) for (name,) in rows]


def _exists(connection: Connection, kind: Literal["to_regclass", "to_regnamespace"], name: LiteralString) -> bool:
    row = connection.execute(f"SELECT {kind}(%s) IS NOT NULL", [name]).fetchone()
    return bool(row and row[0])


def _records(connection: Connection) -> Mapping[str, _Record]:
    if not _exists(connection, "to_regclass", "opensend_milter.migrations"):
        return {}
    rows = connection.execute("SELECT name, sha256, applied_at FROM opensend_milter.migrations ORDER BY name")
    return {name: _Record(sha256, applied_at) for name, sha256, applied_at in rows}


def _made_by_us(records: Mapping[str, _Record]) -> bool:
    return any(name.startswith("opensend/") for name in records)


def _files(owner: _Owner) -> list[_File]:
    folder = resources.files(__package__).joinpath(owner)
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".sql"):
            content = entry.read_bytes()
            name = f"{owner}/{entry.name.removesuffix('.sql')}"
            found.append(_File(name, content.decode("utf-8"), hashlib.sha256(content).hexdigest()))
    return found


def our_indexes() -> dict[str, str]:
    """Return the statements that make the indexes of our own schema, by name."""
    found = {}
    for file in _files("ours"):
        for statement in re.findall(r"CREATE (?:UNIQUE )?INDEX \w+[^;]*;", file.statements):
            found[statement.partition("INDEX ")[2].split()[0]] = " ".join(statement.split())
    return found


def _bring_up(
    connection: Connection,
    owners: Sequence[_Owner],
    records: Mapping[str, _Record],
    password_dir: Path | None,
    say: Callable[[str], None],
    *,
    actions: bool,
    new_passwords: bool,
) -> list[str]:
    """Apply what is pending; whatever can be refused is refused before anything is changed."""
    files = [file for owner in owners for file in _files(owner)]
    _check_records({file.name: file for file in files}, records)
    roles.check(connection)
    without: list[Role] = []
    if password_dir and not new_passwords:
        roles.keep_passwords(connection, password_dir)
        without = roles.without(connection, password_dir)
    roles.create(connection)
    _create_record_table(connection)
    pending = [file for file in files if file.name not in records]
    for number, file in enumerate(pending, start=1):
        say(f"{number} of {len(pending)}: applying {file.name}")
        _persist(connection, file, say)
    say("giving roles their rights")
    roles.grant(connection, actions=actions)
    if password_dir:
        roles.set_passwords(connection, password_dir, but=without)
    return [file.name for file in pending]


def _check_records(files: Mapping[str, _File], records: Mapping[str, _Record]) -> None:
    for name, record in records.items():
        state = _state(files.get(name), record)
        if state == "unknown":
            raise UsageError(f"the database has {name}, which this program does not know: upgrade opensend-milter")
        if state == "changed":
            raise UsageError(
                f"{name}.sql is not the file that was applied on {record.applied_at:%Y-%m-%d}: reinstall this program"
            )


def _create_record_table(connection: Connection) -> None:
    with connection.transaction():
        # IF NOT EXISTS would ask for CREATE on the database even where somebody has prepared the schema for us.
        if not _exists(connection, "to_regnamespace", "opensend_milter"):
            connection.execute("CREATE SCHEMA opensend_milter")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS opensend_milter.migrations ("
            "name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )


def _persist(connection: Connection, file: _File, say: Callable[[str], None]) -> None:
    """Apply one as soon as nobody uses what it changes: whoever comes while it waits for a table waits behind it."""
    for number in range(1, TRIES):
        try:
            _apply(connection, file)
        except errors.LockNotAvailable:
            say(f"{file.name} waits for a transaction that uses its tables, {number} of {TRIES}")
            time.sleep(PAUSE_S)
        else:
            return
    try:
        _apply(connection, file)
    except errors.LockNotAvailable as error:
        raise UsageError(
            f"{file.name}: a transaction goes on using a table that it changes; nothing of it is applied. "
            "Find it in pg_stat_activity (a dump, a report, a session left open), end it, and run this again"
        ) from error


def _apply(connection: Connection, file: _File) -> None:
    with connection.transaction():
        connection.execute(_PATIENCE)
        connection.execute(file.statements)
        connection.execute(
            "INSERT INTO opensend_milter.migrations (name, sha256) VALUES (%s, %s)", [file.name, file.sha256]
        )
