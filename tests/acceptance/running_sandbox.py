"""A sandbox as a test holds it in its hands."""

from __future__ import annotations

import json
import os
import shutil
import smtplib
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from typer.testing import CliRunner

from opensend_milter import cli
from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.host.sandbox import lifecycle as host, state as sandbox_state
from tests.integration.private_postgres import Kept
from tests.log_scan import Finding, Forbidden, assert_clean, body_starts, look_through
from tests.waiting import await_true, patience_s

OF_OTHERS = {"postfix.log", "postgres.log", "dovecot.log"}
"""They show addresses as they always do; ours mask them."""
HEAD_BYTES = 65_536
CLEAR: tuple[LiteralString, ...] = (
    "DROP FUNCTION IF EXISTS public.take_time CASCADE",
    "ALTER DATABASE opensend RESET synchronous_commit",
    (
        "TRUNCATE logs, emails, email_events, webhook_deliveries, opensend_milter.submissions, opensend_milter.jobs,"
        " opensend_milter.fingerprints, opensend_milter.raw_chunks, opensend_milter.refusals"
    ),
)
"""What tests/acceptance/test_faults.py makes of a database, undone."""


def program(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run opensend-milter to its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "opensend_milter", *arguments],
        capture_output=True,
        text=True,
        timeout=patience_s(),
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def typed(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the same in this process: one of its own needs half a second to start."""
    result = CliRunner().invoke(cli.app_of(arguments[:1]), arguments, catch_exceptions=False)
    if check:
        assert result.exit_code == 0, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@contextmanager
def closed_on_failure(client: smtplib.SMTP) -> Iterator[None]:
    """Leave no connection behind that nobody holds."""
    try:
        yield
    except BaseException:
        client.close()
        raise


@dataclass(slots=True)
class Sandbox:
    """A sandbox in its directory; its values by their public names."""

    directory: Path
    values: dict[str, str] = field(default_factory=dict)
    cleared: frozenset[bytes] = frozenset()
    """How bodies began that are not stored any more: no log may show them all the same."""
    _way_in: Kept | None = None

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def up(self, *options: str) -> Sandbox:
        """Start it, or start it again."""
        self._let_go()
        self.run("up", "--fast", *options)
        self.values = sandbox_state.variables(self.directory, sandbox_state.load(self.directory))
        return self

    def run(self, subcommand: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a subcommand of `sandbox` on it."""
        return typed("sandbox", subcommand, "--dir", str(self.directory), *options, check=check)

    def pids(self) -> dict[str, int]:
        """Return the process id of each program, and of the keeper, without asking whether they answer."""
        keeper = sandbox_state.keeper_pid(self.directory) or 0
        return {"keeper": keeper, **{str(one["name"]): int(one["pid"] or 0) for one in self._children()}}

    def pid(self, name: str) -> int:
        """Return the process id of one program, without asking it whether it answers."""
        return next(int(one["pid"]) for one in self._children() if one["name"] == name and one["pid"])

    def await_good(self) -> None:
        """Wait until all runs and answers."""
        # The keeper's word costs nothing; asking everybody is worth it only then.
        await_true(
            lambda: self._all_run() and host.status(self.directory).good,
            lambda: host.status(self.directory),
            pause_s=0.05,
        )

    def _all_run(self) -> bool:
        return all(one["state"] == "running" for one in self._children())

    def _children(self) -> list[dict[str, str | int | None]]:
        found: list[dict[str, str | int | None]] = json.loads((self.directory / "run" / "children.json").read_text())
        return found

    def connect(self, port: str = "SANDBOX_SMTP_PORT") -> smtplib.SMTP:
        """Open a connection with TLS and without AUTH."""
        context = ssl.create_default_context(cafile=self["SANDBOX_TLS_CA"])
        host, number = self["SANDBOX_SMTP_HOST"], int(self[port])
        if port == "SANDBOX_SMTPS_PORT":
            return smtplib.SMTP_SSL(host, number, timeout=patience_s(), context=context)
        client = smtplib.SMTP(host, number, timeout=patience_s())
        with closed_on_failure(client):
            client.starttls(context=context)
            client.ehlo()
        return client

    def smtp(self, key: str = "SANDBOX_API_KEY", port: str = "SANDBOX_SMTP_PORT") -> smtplib.SMTP:
        """Open a connection that is logged in with one of the keys."""
        client = self.connect(port)
        with closed_on_failure(client):
            client.login("apikey", self[key])
        return client

    def inbox(self) -> list[Path]:
        """List what was delivered, oldest first; beside OpenSend there is no such place."""
        return sorted((self.directory / "inbox").glob("new/*"))

    def log(self, name: str) -> str:
        """Read the log of a program."""
        return (self.directory / "log" / f"{name}.log").read_text(errors="replace")

    def database(self) -> Connection:
        """Return the superuser's connection: one for all questions."""
        self._way_in = self._way_in or Kept(self["SANDBOX_DATABASE_URL"])
        return self._way_in.connection()

    def _let_go(self) -> None:
        if self._way_in:
            self._way_in.close()
            self._way_in = None

    def clear(self) -> None:
        """Forget all mail, and what a test changed."""
        self.cleared |= self._body_starts()
        for statement in CLEAR:
            await_true(partial(_has_run, self.database(), statement), statement)
        for path in self.inbox():
            path.unlink()

    def take_down(self) -> list[Finding]:
        """End it and leave nothing; return what its logs hold and must not."""
        found: list[Finding] = []
        self._let_go()
        if (self.directory / "sandbox.json").exists():
            forbidden = Forbidden(secrets=self._secrets(), body_starts=self._body_starts() | self.cleared)
            self.run("down", check=False)
            logs = sorted((self.directory / "log").glob("*.log"))
            ours = [log for log in logs if log.name not in OF_OTHERS]
            found = look_through(set(logs) - set(ours), forbidden)
            found += look_through(ours, replace(forbidden, addresses=True))
        shutil.rmtree(self.directory, ignore_errors=True)
        return found

    def _secrets(self) -> frozenset[bytes]:
        state = json.loads((self.directory / "sandbox.json").read_text())
        passwords = [path.read_bytes().strip() for path in (self.directory / "passwords").glob("*")]
        return frozenset({state["superuser_password"].encode(), *passwords} - {b""})

    def _body_starts(self) -> frozenset[bytes]:
        """Know the bodies of all that was taken, as they came and as they read, and of all that was delivered."""
        found = set[bytes]()
        for path in (self.directory / "inbox").glob("*/*"):
            with path.open("rb") as file:
                found |= body_starts(file.read(HEAD_BYTES))
        # A test may have stopped the database, or the sandbox while it came up.
        options = "-c statement_timeout=20s"
        with (
            suppress(psycopg.Error, KeyError),
            psycopg.connect(self["SANDBOX_DATABASE_URL"], connect_timeout=5, options=options) as connection,
        ):
            for (raw,) in connection.execute(
                "SELECT substring(bytes FOR %s) FROM opensend_milter.raw_chunks WHERE chunk_no = 0", [HEAD_BYTES]
            ):
                found |= body_starts(raw)
            for text, html in connection.execute(
                'SELECT coalesce(left("text", %(most)s), %(no)s), coalesce(left(html, %(most)s), %(no)s) FROM emails',
                {"most": HEAD_BYTES, "no": ""},
            ):
                found |= body_starts(text.encode(), is_body=True) | body_starts(html.encode(), is_body=True)
        return frozenset(found)


@contextmanager
def standing(*options: str) -> Iterator[Sandbox]:
    """Run one, and see at its end that its logs are clean."""
    if os.geteuid() != 0:
        pytest.skip("a sandbox needs root")
    sandbox = Sandbox(new_directory())
    found: list[Finding] = []
    try:
        yield sandbox.up(*options)
    finally:
        found = sandbox.take_down()
    assert_clean(found)


def _has_run(connection: Connection, statement: LiteralString) -> bool:
    """Run it, unless somebody who is at work locks the same tables the other way round."""
    try:
        connection.execute(statement)
    except psycopg.errors.DeadlockDetected:
        return False
    return True


def new_directory() -> Path:
    """Make a directory that the servers' users can enter and whose path is short."""
    directory = Path(tempfile.mkdtemp(prefix="os-", dir="/tmp"))
    directory.chmod(0o755)
    return directory
