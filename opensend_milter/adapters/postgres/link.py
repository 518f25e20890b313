"""How we reach Postgres: connections by role, named statements, errors mapped at the edge."""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, LiteralString, Protocol

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from opensend_milter import adapters
from opensend_milter.config import DEAD_NETWORK
from opensend_milter.core import counting
from opensend_milter.core.errors import ConfigError, RowRefused, StoreUnavailable, TablesDiffer

log = logging.getLogger(__name__)

Connection = psycopg.Connection[TupleRow]
Role = Literal[
    "opensend_dovecot_auth", "opensend_milter", "opensend_worker", "opensend_http",
    "opensend_reader", "opensend_body_reader", "opensend_console", "opensend_console_actor",
]  # fmt: skip
StatementFile = Literal[
    "intake", "billing", "whole_rows", "jobs", "feedback", "spellings", "webhooks", "submissions", "letters", "rates",
    "admin", "deliveries", "inspection", "suppression_files", "switching", "verification",
    "search", "filling", "story", "contents", "console", "console_users", "console_actions", "overview", "findings",
]  # fmt: skip
_FOLDERS = {
    **dict.fromkeys(
        (
            *("admin", "console_actions", "console_users", "deliveries", "findings", "inspection", "overview"),
            *("suppression_files", "switching", "verification"),
        ),
        "admin",
    ),
    **dict.fromkeys(("search", "filling", "story", "contents"), "postgres/lookup"),
}
"""Of statement files that are not beside us."""
# Planned once: our values never change the best plan. Never compiled, and never by several processes: beside millions
# of rows a plan seems dear, and to compile it takes 80 ms, to start a second process 9, of a look-up that takes four.
# Compressed by lz4 where the server knows it: of an attachment, Postgres' own way costs more CPU than everything else
# together.
_SETTINGS: LiteralString = """
    SELECT set_config('plan_cache_mode', 'force_generic_plan', false), set_config('jit', 'off', false),
        set_config('max_parallel_workers_per_gather', '0', false), (
        SELECT set_config('default_toast_compression', 'lz4', false) FROM pg_settings
        WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))"""
_JUST_NOW_S = 0.1
"""No server ends and begins again in less."""
CONNECT_TIMEOUT_S = 5
"""Also how long a host that does not answer may keep a message waiting."""


def conninfo_for(url: str, password_dir: Path | None, role: Role | None, **more: str | int) -> str:
    """Turn the configured URL into one process's own: its role and password where roles are in use."""
    settings: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "UTF8", **more}
    if role and password_dir:
        settings |= {"user": role, "password": _read_password(password_dir / role)}
    return conninfo.make_conninfo("", **{**DEAD_NETWORK, **conninfo.conninfo_to_dict(url, **settings)})


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"database.password_dir: cannot read {path}: {error.strerror}; run `db init`") from error


def connect(info: str, *, application_name: str, autocommit: bool = True) -> Connection:
    """Open a connection that is set up for what we do."""
    with store_errors():
        connection = psycopg.connect(info, autocommit=autocommit, application_name=application_name)
        if is_pooled(connection):
            # What one statement leaves behind in a session, the next one may find in another.
            connection.prepare_threshold = None
        else:
            connection.execute(_SETTINGS)
        if not autocommit:
            connection.commit()
        return connection


def is_pooled(connection: Connection) -> bool:
    """Tell whether a pooler answers: the session that works for us is not the one that greeted us."""
    ((session,),) = connection.execute("SELECT pg_backend_pid()")
    return bool(session != connection.info.backend_pid)


@contextmanager
def store_errors() -> Iterator[None]:
    """Map what psycopg raises: the database is the trouble, or a row of ours."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        # Its traceback would quote the row.
        raise RowRefused(f"{type(error).__name__}: {error.diag.message_primary or ''}") from None
    except psycopg.Error as error:
        counting.store_unavailable()
        # Not the whole error: its DETAIL may quote a row, and with it an address.
        raise StoreUnavailable(f"{type(error).__name__}: {error.diag.message_primary or error}") from error


class Tables(Protocol):
    """Whether the tables are those that we know."""

    def check(self, connection: Connection) -> None:
        """Look, where it is time to; raise TablesDiffer while they are not."""
        ...

    def doubt(self) -> None:
        """Have the next one look, whenever the last look was."""
        ...


class Link:
    """One connection for one thread, opened when first needed and again after it was lost."""

    _lost_at: ClassVar = float("-inf")
    """When any of them last lost its own: those that were open then may be dead too, and give no sign of it."""

    def __init__(self, info: str, *, name: str, timeout_s: float, tables: Tables | None = None) -> None:
        """`tables`: lend only where they fit."""
        self._info = info
        self._name = name
        self._timeout_s = timeout_s
        self._tables = tables
        self._connection: Connection | None = None
        self._opened_at = 0.0
        self._answered_at = 0.0
        self._cutter = _Cutter(name)

    def close(self) -> None:
        """Let go of the connection."""
        self._cutter.stop()
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend the connection for as long as `timeout_s`, and drop it when it fails."""
        if self._connection is not None and (self._opened_at < Link._lost_at or self._was_ended(self._connection)):
            self._connection.close()
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._info, application_name=self._name)
            self._opened_at = time.monotonic()
        connection = self._connection
        try:
            with self._cutter.after(self._timeout_s, connection.fileno()), store_errors():
                if self._tables:
                    self._tables.check(connection)
                yield connection
            self._answered_at = time.monotonic()
        except TablesDiffer:
            raise
        except RowRefused:
            self._doubt()
            raise
        except StoreUnavailable:
            self._doubt()
            self._connection = None
            if connection.broken:
                Link._lost_at = time.monotonic()
            with suppress(Exception):  # it is lost already; closing only frees the descriptor
                connection.close()
            raise

    def _was_ended(self, connection: Connection) -> bool:
        """Tell whether the server said something unasked, as it does last when it is stopped.

        One message less that pays for a restart in which nobody had asked anything.
        """
        # To look, a thread lets go of the interpreter, and waits for it behind all others.
        if connection.closed or time.monotonic() - self._answered_at < _JUST_NOW_S:
            return False
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def _doubt(self) -> None:
        if self._tables:
            self._tables.doubt()


class _Cutter:
    """Cuts a connection whose server has gone silent: libpq itself waits for ever on a unix socket."""

    def __init__(self, name: str) -> None:
        self._due: tuple[float, int] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-cutter", daemon=True)

    def stop(self) -> None:
        self._stopped.set()

    @contextmanager
    def after(self, timeout_s: float, descriptor: int) -> Iterator[None]:
        if not self._thread.is_alive():
            self._thread.start()
        self._due = time.monotonic() + timeout_s, descriptor
        try:
            yield
        finally:
            with self._lock:
                self._due = None

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            # Under the lock, so that a descriptor that was given back is never the one that is cut.
            with self._lock:
                if self._due and time.monotonic() > self._due[0]:
                    log.error("database silent for too long: connection cut")
                    with socket.socket(fileno=os.dup(self._due[1])) as cut:
                        cut.shutdown(socket.SHUT_RDWR)
                    self._due = None


@cache
def statements(name: StatementFile) -> Mapping[str, LiteralString]:
    """Load NAME.sql: `-- name -- description`, then the statement, up to the next name."""
    return {key: _bare(_whole(text)) for key, text in _parts(_FOLDERS.get(name, "postgres"), name).items()}


def _bare(text: LiteralString) -> LiteralString:
    """Leave out what only people read: psycopg looks for parameters anew each time in what has over 4,096 octets."""
    return re.sub(r"^ *(?:-- .*\n)?", "", text, flags=re.MULTILINE)


def _whole(text: str) -> LiteralString:
    """Put in what stands in shared.sql, wherever a line says `-- include: NAME, WORD = WHAT`.

    The words are given where it is put in: a value known beforehand is a filter of a scan, one of a row a join.
    """
    while found := re.search(r"^( *)-- include: (\w+)(.*)$", text, re.MULTILINE):
        indent, name, words = found.groups()
        part = _shared()[name]
        for word, what in re.findall(r", (\w+) = ([^,]+)", words):
            part = part.replace(f"{{{word}}}", what)
        text = text[: found.start()] + textwrap.indent(part, indent) + text[found.end() :]
    return text


@cache
def _shared() -> Mapping[str, str]:
    return _parts("postgres", "shared")


def _parts(folder: str, name: str) -> Mapping[str, str]:
    text = resources.files(adapters).joinpath(folder, f"{name}.sql").read_text(encoding="utf-8")
    parts = re.findall(r"^-- (\w+) -- [^\n]+\n(.*?)(?=^-- \w+ -- |\Z)", text, re.MULTILINE | re.DOTALL)
    return {key: part.strip() for key, part in parts}
