"""The database roles of our processes: made once per cluster; rights and passwords are set at every run."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import LiteralString, get_args

from psycopg import errors, sql

from opensend_milter.adapters.postgres.link import Connection, Role
from opensend_milter.core.errors import ConfigError, UsageError

KEY_READER = "opensend_key_reader"
LOGIN_ROLES: tuple[Role, ...] = get_args(Role)
FOR_PEOPLE: tuple[Role, ...] = (
    "opensend_reader", "opensend_body_reader", "opensend_console", "opensend_console_actor",
)  # fmt: skip
"""Commands, and a host without a console, go without where their password is not: on one of several is enough."""
OF_PROCESSES = tuple(role for role in LOGIN_ROLES if role not in FOR_PEOPLE)
CONNECTION_LIMITS: Mapping[Role, int] = {
    "opensend_dovecot_auth": 14,
    "opensend_milter": 32,
    "opensend_worker": 20,
    "opensend_http": 20,
    "opensend_reader": 3,
    "opensend_body_reader": 2,
    "opensend_console": 6,
    "opensend_console_actor": 2,
}
"""Together below Postgres's default of 100: our processes cannot lock the administrator out."""

KEEP = "copy that directory from one of them; if there is none, --new-passwords makes new ones"

_PRIVILEGES = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS"
_RACES = (errors.DuplicateObject, errors.UniqueViolation, errors.DeadlockDetected, errors.InternalError_)
"""What two runners in one cluster do to each other; `tuple concurrently updated` is an InternalError_."""
_SECURED: LiteralString = "SELECT rolname FROM pg_authid WHERE rolpassword IS NOT NULL"
_RECORDED: LiteralString = """
    CREATE TABLE IF NOT EXISTS opensend_milter.rights (
        sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());
    TRUNCATE opensend_milter.rights"""
_ROUNDS = 50
_PAUSE_S = 0.02
_PRIVILEGE_NOT_GRANTED = "01007"


def check(connection: Connection) -> None:
    """Refuse roles of our names that may do more than ours: someone else made them for something else."""
    rows = connection.execute(
        "SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls, rolcanlogin"
        " FROM pg_roles WHERE rolname = ANY (%s)",
        [[KEY_READER, *LOGIN_ROLES]],
    ).fetchall()
    for name, powerful, can_log_in in rows:
        if powerful:
            raise UsageError(
                f"role {name} exists and has SUPERUSER, CREATEROLE, CREATEDB, REPLICATION or BYPASSRLS: "
                "drop it, or take these from it"
            )
        if name == KEY_READER and can_log_in:
            raise UsageError(f"role {name} exists and may log in: drop it, or ALTER ROLE {name} NOLOGIN")


def create(connection: Connection) -> None:
    """Create the roles that are missing; those that exist keep their connection limit."""
    _create(connection, KEY_READER, "NOLOGIN")
    for role in LOGIN_ROLES:
        _create(connection, role, f"LOGIN CONNECTION LIMIT {CONNECTION_LIMITS[role]}")


def _create(connection: Connection, role: str, options: str) -> None:
    statement = f"CREATE ROLE {role} {_PRIVILEGES} {options}"

    def once() -> None:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
            connection.execute(statement)

    _persist(connection, once)


def grant(connection: Connection, *, actions: bool) -> None:
    """Give each role its rights, in one transaction; refuse where this user may not give all of them.

    `actions`: also those for what somebody does from the console; otherwise they are taken back.
    """
    text = _rights(actions=actions)

    def once() -> None:
        with _no_grant_left_out(connection):
            connection.execute(text)
        connection.execute(_RECORDED)
        connection.execute("INSERT INTO opensend_milter.rights (sha256) VALUES (%s)", [shipped(actions=actions)])

    _persist(connection, once)


def shipped(*, actions: bool) -> str:
    """Know again the rights that this version gives."""
    return hashlib.sha256(_rights(actions=actions).encode()).hexdigest()


def granted_at(connection: Connection, *, actions: bool) -> datetime | None:
    """Tell when the rights were given that this version needs; None: others were, or none."""
    rows = connection.execute("SELECT to_regclass('opensend_milter.rights') IS NOT NULL").fetchone()
    if not rows or not rows[0]:
        return None
    row = connection.execute(
        "SELECT applied_at FROM opensend_milter.rights WHERE sha256 = %s", [shipped(actions=actions)]
    ).fetchone()
    return row[0] if row else None


def _rights(*, actions: bool) -> LiteralString:
    files = ("roles.sql", "actions.sql") if actions else ("roles.sql",)
    return "\n".join(resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in files)


@contextmanager
def _no_grant_left_out(connection: Connection) -> Iterator[None]:
    """Turn into an error what Postgres only warns of: a GRANT by someone who may give just a part."""
    warnings: list[str] = []

    def hear(notice: errors.Diagnostic) -> None:
        if notice.sqlstate == _PRIVILEGE_NOT_GRANTED:
            warnings.append(notice.message_primary or "")

    connection.add_notice_handler(hear)
    try:
        yield
    finally:
        connection.remove_notice_handler(hear)
    if warnings:
        raise UsageError(f"{warnings[0]}; connect as the owner of OpenSend's tables, or as a superuser")


def locked_out(connection: Connection, directory: Path) -> str:
    """Say which processes' roles have a password that is not in the directory, but on other hosts; nothing: none."""
    lost = _elsewhere(connection, directory, OF_PROCESSES)
    if not lost:
        return ""
    return f"{', '.join(lost)}: the password is not in {directory}, and with a new one other hosts cannot log in"


def without(connection: Connection, directory: Path) -> list[Role]:
    """Return the roles for people that another host has the password of: they keep it, and this one does without."""
    return _elsewhere(connection, directory, FOR_PEOPLE)


def _elsewhere(connection: Connection, directory: Path, roles: Iterable[Role]) -> list[Role]:
    readable = connection.execute("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')").fetchone()
    # Who may not see passwords takes a role that is there for one that has one.
    rows = connection.execute(_SECURED if readable == (True,) else "SELECT rolname FROM pg_roles").fetchall()
    # After the question: another runner writes the file before it sets the password.
    return [role for role in roles if (role,) in rows and not (directory / role).exists()]


def keep_passwords(connection: Connection, directory: Path) -> None:
    """Refuse to lock other hosts out."""
    if text := locked_out(connection, directory):
        raise UsageError(f"{text}: {KEEP}")


def set_passwords(connection: Connection, directory: Path, but: Collection[Role] = ()) -> None:
    """Give each other login role the password in its file, which is made where it is missing."""
    for role in LOGIN_ROLES:
        if role in but:
            continue
        _set_password(connection, role, _password(directory, role))


def _set_password(connection: Connection, role: Role, password: str) -> None:
    # The server sees, and may log, only what it would store anyway.
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier.decode()))
    _persist(connection, lambda: connection.execute(statement))


def _password(directory: Path, role: Role) -> str:
    path = directory / role
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, secrets.token_urlsafe(32))
        password = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"database.password_dir: {path}: {error.strerror}") from error
    if not password:
        raise ConfigError(f"database.password_dir: {path} is empty: remove it and run this again")
    return password


def _write_once(path: Path, text: str) -> None:
    """Write a file that is whole as soon as it is there; of two writers the first wins."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def _persist(connection: Connection, once: Callable[[], object]) -> None:
    """Run one transaction on what the whole cluster shares until no other runner is in its way."""
    for _ in range(_ROUNDS - 1):
        try:
            with connection.transaction():
                once()
        except _RACES:
            time.sleep(_PAUSE_S)
        else:
            return
    with connection.transaction():
        once()
