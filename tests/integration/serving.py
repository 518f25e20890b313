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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.milter_client import MilterClient

READY_S = 30


@dataclass
class Serving:
    """A running milter, its database, and a key that may send from example.org."""

    directory: Path
    url: str
    process: subprocess.Popen[bytes]
    key: str

    @property
    def socket(self) -> Path:
        return self.directory / "milter.sock"

    @property
    def log(self) -> str:
        return (self.directory / "serve.log").read_text()

    def client(self, timeout_s: float = 30) -> MilterClient:
        """Connect and negotiate as Postfix does."""
        client = MilterClient(self.socket, timeout_s)
        try:
            client.negotiate()
        except BaseException:
            client.socket.close()
            raise
        return client

    def rows(self, query: str, *values: str) -> list[tuple[object, ...]]:
        """Ask the database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), values or None).fetchall()

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
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> int:
        """Stop it as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


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
def serving(url: str, password_dir: Path, **settings: dict[str, object]) -> Iterator[Serving]:
    """Start the milter with a configuration of its own and stop it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="os-serve-", dir="/tmp"))
    config: dict[str, dict[str, object]] = {
        "database": {"password_dir": str(password_dir)},
        "milter": {
            "socket": str(directory / "milter.sock"),
            "spool_dir": str(directory / "spool"),
            "processes": 2,
            "drain_s": 5,
        },
    }
    for section, values in settings.items():
        config[section] = {**config.get(section, {}), **values}
    (directory / "config.yaml").write_text(json.dumps(config))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(directory / "notify"))
        notices.settimeout(READY_S)
        process = start(directory, url)
        try:
            await_ready(notices, process, directory)
            yield Serving(directory, url, process, seed(url))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(10)
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
