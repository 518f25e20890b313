"""How we reach Postgres: connections by role, named statements, errors mapped at the edge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, LiteralString, cast

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from opensend_milter.core.errors import ConfigError, StoreUnavailable

Connection = psycopg.Connection[TupleRow]
Role = Literal["opensend_dovecot_auth", "opensend_milter", "opensend_worker", "opensend_http"]
CONNECT_TIMEOUT_S = 5
"""Also how long a host that does not answer may keep a message waiting."""


def conninfo_for(url: str, password_dir: Path | None, role: Role | None, **more: str | int) -> str:
    """Turn the configured URL into one process's own: its role and password where roles are in use."""
    settings: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "UTF8", **more}
    if role and password_dir:
        settings |= {"user": role, "password": _read_password(password_dir / role)}
    return conninfo.make_conninfo(url, **settings)


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"database.password_dir: cannot read {path}: {error.strerror}; run `db init`") from error


def connect(info: str, *, application_name: str, autocommit: bool = True) -> Connection:
    """Open a connection whose statements are planned once: our values never change the best plan."""
    with store_errors():
        connection = psycopg.connect(info, autocommit=autocommit, application_name=application_name)
        connection.execute("SET plan_cache_mode = force_generic_plan")
        if not autocommit:
            connection.commit()
        return connection


@contextmanager
def store_errors() -> Iterator[None]:
    """Map what psycopg raises when the database is the trouble; a fault in the data passes unchanged."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError):
        raise
    except psycopg.Error as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


@cache
def statements(name: Literal["intake", "jobs", "admin"]) -> Mapping[str, LiteralString]:
    """Load NAME.sql: `-- name -- description`, then the statement, up to the next name."""
    text = resources.files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    found = re.findall(r"^-- (\w+) -- [^\n]+\n(.*?)(?=^-- \w+ -- |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: cast("LiteralString", statement.strip()) for name, statement in found}
