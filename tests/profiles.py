"""A test that says `profile: opensend` runs on OpenSend's own tables: on those of the facts, not on what we make.

Our own copy of them was wrong once, and every test passed. So whoever says so, in this process or in one that it
starts, and opens a database that was made otherwise, fails. The fixture for it is `beside`; a test that alters those
tables on purpose is marked `altered_tables`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest.mock import patch

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from opensend_milter.adapters.postgres.link import Connection, conninfo_for
from opensend_milter.adapters.schema import facts
from opensend_milter.config import PATH_VARIABLE, Config, load
from opensend_milter.core.errors import ConfigError
from tests.integration.private_postgres import PASSWORD, SUPERUSER, Database

MARK = "altered_tables"
MARK_MEANS = "alters OpenSend's tables on purpose, from those of the facts"
OPENSEND = "opensend"
PROFILE_VARIABLE = "OPENSEND_MILTER_PROFILE"
CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 2
"""A test may hold a table: then it is looked at later."""
_PROGRAM = ("opensend_milter", "opensend-milter")
_MAY_ASK = """
    SELECT to_regclass('opensend_milter.migrations') IS NOT NULL
        AND has_schema_privilege('opensend_milter', 'USAGE')
        AND has_table_privilege('opensend_milter.migrations', 'SELECT')"""
_OF_INIT = "SELECT FROM opensend_milter.migrations WHERE name LIKE 'opensend/%' LIMIT 1"


def difference_in(connection: Connection, *, may_differ: bool = False) -> str:
    """Say what shows that this is not OpenSend's own; nothing where it is, or where none of its tables are there."""
    known = facts.opensend()
    here = facts.columns_in(connection, known.names)
    if not here:
        return ""
    if connection.execute(_MAY_ASK).fetchone() == (True,) and connection.execute(_OF_INIT).rowcount:
        return "`db init` made its tables; take the fixture `beside`"
    differing = sorted(f"{column.table}.{column.name}" for column in set(here).symmetric_difference(known.columns))
    if not differing or may_differ:
        return ""
    return f"not OpenSend's own are {', '.join(differing[:5])}, ...; if that is the test, mark it {MARK}"


@dataclass(slots=True)
class Watch:
    """What the test that runs now says and opens."""

    may_differ: bool = False
    _is_called: bool = False
    _is_looking: bool = False
    _said: bool = False
    _opened: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """How to look at each database that was opened, by its place."""
    _found: dict[str, str] = field(default_factory=dict)

    def begin(self, *, may_differ: bool) -> None:
        """Forget the test before."""
        self.may_differ = may_differ
        self._said = False
        self._opened, self._found = {}, {}

    @contextmanager
    def called(self) -> Iterator[None]:
        """Take down what is opened from here on: what is opened to make a fixture is not what a test is about."""
        self._is_called = True
        try:
            yield
        finally:
            self._is_called = False

    def hear(self, config: Config) -> None:
        """Take down what was configured in this process."""
        if config.profile == OPENSEND and not self._said and not self._is_looking:
            self._said = True
            self._look_at_all()

    def see(self, connection: Connection) -> None:
        """Take down what was opened in this process."""
        if self._is_looking or not self._is_called:
            return
        told = connection.pgconn
        place = {"host": told.host.decode(), "port": told.port.decode(), "dbname": told.db.decode()}
        ways = (SUPERUSER, PASSWORD), (told.user.decode(), told.password.decode())
        infos = tuple(make_conninfo(**place, user=user, password=password) for user, password in ways)
        if self._opened.setdefault(str(place), infos) is infos and self._said:
            self._look_at_all()

    def check_started(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        """Refuse to start a program of ours that says so over another database."""
        with self._looking():
            config = _config_of(words, environ)
        if config and config.profile == OPENSEND:
            self.check(config.database.url, config.database.password_dir)

    def check(self, url: str, password_dir: Path | None = None) -> None:
        """Refuse a database that was made otherwise; one that is not there now is none."""
        infos = [url]
        with suppress(ConfigError):
            infos.append(conninfo_for(url, password_dir, "opensend_worker"))
        if fault := self._look(infos):
            raise AssertionError(fault)

    def faults(self, used: Mapping[str, Any]) -> list[str]:
        """Return what this test did wrong, as long as its fixtures are there."""
        written = _written(used["tmp_path"]) if "tmp_path" in used else []
        found = []
        if "database" in used and (self._said or written):
            names = ", ".join(written) or "a configuration"
            found.append(f"{names} says `profile: opensend`, and the fixture is `database`: take `beside`")
        if self._said:
            self._look_at_all()
        return found + sorted(set(self._found.values()))

    def _look_at_all(self) -> None:
        # A database may be gone at the end, and may have been made only in the end: so whoever looks, looks at all.
        for place, infos in list(self._opened.items()):
            if fault := self._look(infos):
                self._found[place] = fault

    def _look(self, infos: Sequence[str]) -> str:
        with self._looking():
            for info in infos:
                with suppress(psycopg.Error):  # the next way, or nobody can
                    limit = f"-c lock_timeout={LOCK_TIMEOUT_S}s"
                    given = make_conninfo(info, connect_timeout=CONNECT_TIMEOUT_S, options=limit)
                    with psycopg.connect(given, autocommit=True) as connection:
                        difference = difference_in(connection, may_differ=self.may_differ)
                    name = conninfo_to_dict(info).get("dbname")
                    return f"`profile: opensend` over the database {name}: {difference}" if difference else ""
        return ""

    @contextmanager
    def _looking(self) -> Iterator[None]:
        before, self._is_looking = self._is_looking, True
        try:
            yield
        finally:
            self._is_looking = before


watch = Watch()


def install() -> None:
    """Listen to configurations, connections and starts of programs, from here to the end of the process."""
    patch.object(Config, "__init__", _then(Config.__init__, watch.hear)).start()
    patch.object(psycopg.Connection, "__init__", _then(psycopg.Connection.__init__, watch.see)).start()
    patch.object(Database, "connect", _seen(Database.connect)).start()
    start = Popen.__init__

    @wraps(start)
    def checked(popen: Popen[bytes], args: Any, *more: Any, **given: Any) -> None:
        words = [args] if isinstance(args, str | bytes | Path) else args
        environ = os.environ if given.get("env") is None else given["env"]
        watch.check_started([str(word) for word in words], environ)
        start(popen, args, *more, **given)

    patch.object(Popen, "__init__", checked).start()


def _then(original: Callable[..., None], tell: Callable[[Any], None]) -> Callable[..., None]:
    @wraps(original)
    def told(made: object, *words: Any, **given: Any) -> None:
        original(made, *words, **given)
        tell(made)

    return told


def _seen(connect: Callable[..., AbstractContextManager[Connection]]) -> Callable[..., Any]:
    """One that was kept was opened by a test before."""

    @contextmanager
    @wraps(connect)
    def told(*given: Any) -> Iterator[Connection]:
        with connect(*given) as connection:
            watch.see(connection)
            yield connection

    return told


def _config_of(words: Sequence[str], environ: Mapping[str, str]) -> Config | None:
    """Return what a program of ours will find configured; None: it is none of ours, or has nothing to say."""
    if not any(name in word for word in words for name in _PROGRAM):
        return None
    named = [after for word, after in pairwise(words) if word in {"--config", "-c"}]
    named += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    if not named and not {PATH_VARIABLE, PROFILE_VARIABLE} & environ.keys():
        return None
    with suppress(ConfigError, OSError, ValueError):  # then it does not start
        return load(Path(named[0]) if named else None, environ)
    return None


def _written(directory: Path) -> list[str]:
    """Not deeper: some tests keep the copy of a whole system there."""
    files = sorted(path for pattern in ("*.y*ml", "*/*.y*ml") for path in directory.glob(pattern))
    return [path.name for path in files if path.is_file() and _says(path)]


def _says(path: Path) -> bool:
    content: object = None
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and content.get("profile") == OPENSEND
