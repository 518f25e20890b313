"""A Postgres cluster of our own: started for the tests, stopped for faults, gone at the end."""

from __future__ import annotations

import hashlib
import hmac
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from opensend_milter.adapters.postgres.link import Connection, Role
from tests.ports import free_port
from tests.waiting import PAUSE_S, await_true, patience_s

SUPERUSER, PASSWORD = "postgres", "only-of-the-tests"
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "password_encryption": "scram-sha-256",
    "log_statement": "all",
}


def program(name: str) -> str:
    """Find one of Postgres's programs: on PATH, or where Debian keeps them."""
    found = shutil.which(name)
    if not found:
        newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
        if not newest:
            raise FileNotFoundError(f"{name}: install the package postgresql")
        found = str(newest[-1])
    return found


def verifier(password: str) -> str:
    """Return what Postgres keeps of a password, of one round: its own 4,096 cost each connection 4 ms of the tests."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt := os.urandom(16), iterations := 1)
    client, server = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    told = (b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *told)


def _as_postgres() -> list[str]:
    """Postgres refuses to run as root."""
    return [] if os.geteuid() else ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


@dataclass(slots=True)
class Cluster:
    """One running server. Its log is `directory / "log"`: every statement is in it."""

    directory: Path
    port: int = 0
    _server: subprocess.Popen[bytes] | None = None
    _paused: list[int] = field(default_factory=list)

    def create(self) -> None:
        """Make the directory tree; `start` is the next step."""
        if not os.geteuid():
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        password = self.directory / "superuser"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        subprocess.run(
            [*_as_postgres(), program("initdb"), "--no-sync", "--auth-host=scram-sha-256", "--auth-local=trust",
             f"--username={SUPERUSER}", f"--pwfile={password}",
             "--encoding=UTF8", "--locale=C.UTF-8", f"--pgdata={self.directory / 'data'}"],
            check=True, stdout=subprocess.DEVNULL, cwd=self.directory,
        )  # fmt: skip

    def start(self) -> None:
        """Start, or start again on the same port; return when it answers."""
        if self._server:
            return
        deadline = time.monotonic() + patience_s()
        while True:
            # The port was free a moment ago, which is all that can be known: Postgres cannot pick one itself.
            port = self.port or free_port()
            with (self.directory / "log").open("ab") as log:
                self._server = self._spawn(port, log)
            if self._answers(port, deadline):
                is_new, self.port = not self.port, port
                if is_new:
                    self.execute(
                        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), verifier(PASSWORD))
                    )
                return
            if time.monotonic() > deadline:
                raise TimeoutError((self.directory / "log").read_text()[-2000:])

    def _spawn(self, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        return subprocess.Popen(
            [*_as_postgres(), program("postgres"), "-D", str(self.directory / "data"),
             "-p", str(port), "-k", str(self.directory), *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _answers(self, port: int, deadline: float) -> bool:
        server = self._server
        while server and server.poll() is None and time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self._url("postgres", port)).close()
                return True
            time.sleep(PAUSE_S)
        return False

    def stop(self) -> None:
        """Shut down and cut all connections, as `systemctl stop` does."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End without a word to anybody; `start` recovers from the log."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        self.resume()
        if self._server:
            self._server.send_signal(how)
            self._server.wait(patience_s())
            self._server = None

    def pause(self) -> None:
        """Freeze the server with all its sessions: connections stay open, nothing answers."""
        if self._server and not self._paused:
            # The postmaster first, so that it makes no new session in between.
            os.kill(self._server.pid, signal.SIGSTOP)
            self._paused = [self._server.pid, *_children(self._server.pid)]
            for pid in self._paused[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    def is_asked(self) -> bool:
        """Tell whether somebody has asked a paused server something: it lies there unread."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, _, queues, *_ = line.split()
            if int(local.partition(":")[2], 16) == self.port and int(queues.partition(":")[2], 16):
                return True
        return False

    def resume(self) -> None:
        """Undo `pause`."""
        for pid in reversed(self._paused):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._paused = []

    def url(self, database: str, user: str = SUPERUSER, password: str = PASSWORD) -> str:
        """Return a URL over TCP, so that a test may put a proxy between."""
        return self._url(database, self.port, user, password)

    def _url(self, database: str, port: int, user: str = SUPERUSER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port}/{database}"

    def here(self, database: str) -> str:
        """Return the superuser's way in by the socket, without a password: it costs half of the way over TCP."""
        return make_conninfo(host=str(self.directory), port=self.port, user=SUPERUSER, dbname=database)

    def execute(self, *statements: sql.Composed | sql.SQL) -> None:
        """Run statements as superuser, each on its own."""
        with psycopg.connect(self.here("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def new_database(self, name: str, template: str = "template0", owner: str = SUPERUSER) -> str:
        """Create a database and return its URL."""
        names = [sql.Identifier(one) for one in (name, owner, template)]
        with psycopg.connect(self.here("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} ENCODING 'UTF8'").format(*names))
            temporary = "SELECT has_database_privilege('public', %s, 'TEMPORARY')"
            if template != "template0" and connection.execute(temporary, [template]).fetchone() == (False,):
                # Rights on the template itself are not copied.
                connection.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(names[0]))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop it, whoever is connected."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def dump_schema(self, database: str, *options: str) -> str:
        """Return what `pg_dump --schema-only` says of a database."""
        return subprocess.run(
            [program("pg_dump"), "--schema-only", *options, f"--dbname={self.url(database)}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip


@dataclass(slots=True)
class Kept:
    """A connection for many questions: a new one costs more than most of them."""

    info: str
    _open: Connection | None = None
    _is_lent: Lock = field(default_factory=Lock)

    def connection(self) -> Connection:
        """Return it as good as new; where the server was stopped meanwhile, another."""
        if self._open:
            with suppress(psycopg.OperationalError):
                self._open.rollback()
                self._open.set_autocommit(True)
                self._open.execute("DISCARD ALL")
                return self._open
            self.close()
        # Nothing prepared: a test may alter the tables between two questions.
        self._open = psycopg.connect(self.info, autocommit=True, prepare_threshold=None)
        return self._open

    @contextmanager
    def lent(self) -> Iterator[Connection]:
        """Lend it; to whoever asks meanwhile, another."""
        if not self._is_lent.acquire(blocking=False):
            with psycopg.connect(self.info, autocommit=True) as connection:
                yield connection
            return
        try:
            connection = self.connection()
            yield connection
            if not connection.closed:
                connection.commit()
        finally:
            self._is_lent.release()

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open = None


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test: as `db init` leaves it, or OpenSend's own with our schema in it."""

    name: str
    cluster: Cluster
    password_dir: Path
    way_in: Kept | None = None
    """The superuser's, kept from test to test."""

    @property
    def url(self) -> str:
        """As superuser."""
        return self.cluster.url(self.name)

    def url_for(self, role: Role) -> str:
        """As the role of one of our processes, with its own password."""
        password = (self.password_dir / role).read_text().strip()
        return self.cluster.url(self.name, role, password)

    @contextmanager
    def connect(self, role: Role | None = None) -> Iterator[Connection]:
        """Lend an autocommit connection of its own, as superuser unless a role is named."""
        if self.way_in and not role:
            with self.way_in.lent() as connection:
                yield connection
            return
        info = self.url_for(role) if role else self.cluster.here(self.name)
        with psycopg.connect(info, autocommit=True) as connection:
            yield connection

    def await_blocked(self, sessions: int = 1) -> None:
        """Wait until so many wait for a lock."""
        query = b"SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with self.connect() as connection:
            await_true(lambda: connection.execute(query).rowcount == sessions, f"{sessions} wait for a lock")


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run a new cluster; nothing of it is left afterwards."""
    # A unix socket path holds 107 bytes, and the user postgres must be able to enter the directory.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="os-pg-", dir="/tmp")))
    with _heir(cluster.directory):
        try:
            cluster.create()
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(cluster.directory)


@contextmanager
def _heir(directory: Path) -> Iterator[None]:
    """Clear up even where this process is killed: the pipe's end closes with it."""
    script = """cat >/dev/null
        if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then kill -QUIT "$pid"; kill -CONT "$pid"; fi
        rm -rf "$1" """
    with subprocess.Popen(
        ["sh", "-c", script, "sh", str(directory)], stdin=subprocess.PIPE, start_new_session=True
    ):  # leaving closes the pipe and waits
        yield


def _children(parent: int) -> Sequence[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The second field, a name in parentheses, may hold spaces.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found
