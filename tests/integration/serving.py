"""Runs `opensend-milter serve` against a database of a test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg

from opensend_milter.servers.orphans import NAME as KEEPER
from tests.integration.private_postgres import Kept
from tests.log_scan import Forbidden, assert_clean, look_through
from tests.milter_client import Answer, MilterClient
from tests.waiting import patience_s, scaled_s


@dataclass
class Serving:
    """A running milter, its database, and a key that may send from example.org."""

    directory: Path
    url: str
    process: subprocess.Popen[bytes]
    key: str
    database: Kept

    @property
    def socket(self) -> Path:
        return self.directory / "milter.sock"

    @property
    def log(self) -> str:
        return (self.directory / "serve.log").read_text()

    def client(self) -> MilterClient:
        """Connect and negotiate as Postfix does."""
        client = MilterClient(self.socket)
        try:
            client.negotiate()
        except BaseException:
            client.socket.close()
            raise
        return client

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the database, or change it."""
        done = self.database.connection().execute(query.encode(), values or None)
        return done.fetchall() if done.description else []

    def counts(self) -> tuple[object, ...]:
        """Return the number of rows in emails, submissions, jobs."""
        (counts,) = self.rows(
            "SELECT (SELECT count(*) FROM emails), (SELECT count(*) FROM opensend_milter.submissions),"
            " (SELECT count(*) FROM opensend_milter.jobs)"
        )
        return counts

    def last_refusal(self) -> tuple[object, ...]:
        """Return rule and code of the newest record."""
        return self.rows("SELECT rule, code FROM opensend_milter.refusals ORDER BY id DESC LIMIT 1")[0]

    def children(self) -> list[int]:
        """Return the pids of the processes that answer."""
        asked = ["pgrep", "--list-name", "--parent", str(self.process.pid)]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
        return [int(pid) for pid, name in map(str.split, found) if name != KEEPER]

    def stop(self) -> int:
        """Stop it as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s())

    def account(self) -> Account:
        """Make a user, so that a test has rows of its own."""
        user_id = f"user-{uuid4()}"
        self.rows("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', %s)", user_id)
        return Account(self, user_id, add_key(self, user_id))


@dataclass(frozen=True)
class Account:
    """A user with the verified domain example.org and a key."""

    served: Serving
    user_id: str
    key: str

    def send(self, raw: bytes, *recipients: str, key: str = "", queue_id: str = "4XQUEUE") -> Answer:
        """Hand in a message on a connection of its own."""
        with self.served.client() as client:
            return client.message(key or self.key, raw, *recipients, queue_id=queue_id)

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask or change what is this user's: his id is the first value."""
        return self.served.rows(query, self.user_id, *values)

    def emails(self) -> list[str]:
        """Return the ids of what is stored, oldest first."""
        return [str(email_id) for (email_id,) in self.rows("SELECT id FROM emails WHERE user_id = %s ORDER BY id")]

    def suppress(self, *addresses: str) -> None:
        """Put addresses on the suppression list."""
        for address in addresses:
            self.rows("INSERT INTO email_suppressions (user_id, email, reason) VALUES (%s, %s, 'bounced')", address)


def add_key(served: Serving, user_id: str, domain: str | None = None) -> str:
    """Make a key; `domain` is what stands in its column."""
    ((key,),) = served.rows(
        "INSERT INTO api_keys (name, token_hash, user_id, domain) VALUES ('t', gen_random_uuid(), %s, %s)"
        " RETURNING id::text",
        user_id,
        domain,
    )
    return str(key)


def seed(url: str) -> str:
    """Create a key, its verified domain and a suppressed address; return the key's id."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "INSERT INTO api_keys (name, token_hash, user_id) VALUES ('t', repeat('0', 64), 'u1') RETURNING id::text"
        ).fetchone()
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'u1')")
        connection.execute(
            "INSERT INTO email_suppressions (user_id, email, reason) VALUES ('u1', 'bad@example.net', 'bounced')"
        )
    assert row is not None
    return str(row[0])


@contextmanager
def serving(
    url: str, password_dir: Path, *, profile: str = "standalone", billing: str = "none", **settings: dict[str, object]
) -> Iterator[Serving]:
    """Start the milter with a configuration of its own and stop it at the end.

    `profile="opensend"` wants a database as the fixture `beside` is made: see tests/profiles.py.
    """
    directory = Path(tempfile.mkdtemp(prefix="os-serve-", dir="/tmp"))
    config: dict[str, dict[str, object]] = {
        "database": {"password_dir": str(password_dir)},
        "milter": {
            "socket": str(directory / "milter.sock"),
            "spool_dir": str(directory / "spool"),
            "processes": 2,
            "drain_s": scaled_s(5),
        },
    }
    for section, values in settings.items():
        config[section] = {**config.get(section, {}), **values}
    (directory / "config.yaml").write_text(json.dumps({"profile": profile, "billing": billing, **config}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(directory / "notify"))
        notices.settimeout(patience_s())
        process = start(directory, url)
        try:
            await_ready(notices, process, directory)
            with closing(Kept(url)) as database:
                yield Serving(directory, url, process, seed(url), database)
            assert_clean(look_through([directory / "serve.log"], Forbidden(addresses=True)))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            shutil.rmtree(directory)


def start(directory: Path, url: str) -> subprocess.Popen[bytes]:
    """Start the program as a service manager does."""
    environ = {**os.environ, "DATABASE_URL": url, "NOTIFY_SOCKET": str(directory / "notify")}
    with (directory / "serve.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "opensend_milter", "serve", "--config", str(directory / "config.yaml")],
            env=environ,
            stderr=log,
        )


def await_ready(notices: socket.socket, process: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait for READY=1 and nothing else."""
    try:
        while b"READY=1" not in notices.recv(4096):
            pass
    except TimeoutError:
        log = (directory / "serve.log").read_text()
        raise AssertionError(f"not ready (exit {process.poll()}):\n{log}") from None
