"""The course of an upgrade under load: two hosts on one database, one after the other, as docs/upgrading.md says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opensend_milter.adapters.schema.migrations import RIGHTS
from tests.integration.private_postgres import Database
from tests.upgrade.clients import Door, Http, Smtp
from tests.upgrade.filling import WORKER, Keys
from tests.upgrade.hosts import MailHost
from tests.upgrade.ledger import Ledger, now
from tests.upgrade.reading import CONSOLE_PORT, unshown_by_console
from tests.waiting import await_true

A_WHILE = 20
"""Messages of each client."""
GATE = "opensend-auth-gate.service"
_UNKNOWN = "INSERT INTO opensend_milter.migrations (name, sha256) VALUES (%s, 'of the upgrade test')"
_HELD_UP = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'opensend-milter-db' AND wait_event_type = 'Lock'
"""
_AT_WORK = """
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'opensend-milter-db'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, and when it was."""

    name: str
    began_at: float
    ended_at: float


@dataclass(slots=True, kw_only=True)
class Course:
    """All that an upgrade needs, and what became of it."""

    first: MailHost
    second: MailHost
    database: Database
    package: Path
    keys: Keys
    say: Callable[[str], None]
    ledger: Ledger = field(default_factory=Ledger)
    steps: list[Step] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    """Migrations, which nobody takes back, that the plan did not name."""
    unshown: list[str] = field(default_factory=list)
    """Messages that the console does not show while it goes on."""

    @property
    def hosts(self) -> tuple[MailHost, MailHost]:
        return self.first, self.second

    def doors(self) -> dict[str, tuple[MailHost, Door]]:
        """Return the clients: connections kept and single, three keys, both hosts, SMTP and HTTP."""
        found: dict[str, tuple[MailHost, Door]] = {}
        for host in self.hosts:
            found[f"{host.name}kept"] = host, Smtp(host.tls(), self.keys.plain, keeps=True)
            found[f"{host.name}ruled"] = host, Smtp(host.tls(), self.keys.ruled, keeps=False)
            found[f"{host.name}rotated"] = host, Smtp(host.tls(), self.keys.rotated, keeps=False)
            found[f"{host.name}http"] = host, Http(self.keys.plain)
        return found

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note how long it takes."""
        self.say(name)
        began_at = now()
        yield
        self.steps.append(Step(name=name, began_at=began_at, ended_at=now()))

    def run(self) -> None:
        """Upgrade while clients send; they do so before, between and afterwards, too."""
        first, second = self.first, self.second
        with self.step("both old"):
            self._go_on(*self.hosts)
        with self.step("a: dpkg -i (what runs goes on)"):
            first.install_package(self.package)
            self._go_on(*self.hosts)
        with self.step("a: its gate dies, and is the new one"):
            first.system.systemctl("kill", "--signal=KILL", GATE)
            self._go_on(first)
        with self.step("a: install --plan"):
            plan = first.ours("install", "--plan").stdout
        if pending := names(first.asked("db", "status"), "pending"):
            self.unsaid = [name for name in pending if name not in plan]
            with self.step("a: db migrate, killed halfway"):
                self._killed_halfway(pending)
            with self.step("a: db migrate, again"):
                self.applied = first.asked("db", "migrate")["applied"]
        with self.step("b: the old program on new tables"):
            self._go_on(second)
        with self.step("a: install --apply, the console too"):
            first.configure(f"console: {{port: {CONSOLE_PORT}}}\n")
            first.ours("install", "--apply")
        with self.step("a new, b old"):
            # Its worker was stopped: what waits is delivered by both versions.
            second.system.systemctl("start", WORKER)
            self._go_on(*self.hosts)
            self.unshown += unshown_by_console(first, self.database, self.newest())
        with self.step("b: dpkg -i"):
            second.install_package(self.package)
        with self.step("b: install --apply"):
            second.ours("install", "--apply")
        with self.step("both new"):
            self._go_on(*self.hosts)

    def _go_on(self, *hosts: MailHost) -> None:
        """Wait until each client of these hosts has sent for a while."""
        clients = [name for name, (host, _) in self.doors().items() if host in hosts]
        before = {name: self.ledger.accepted_of(name) for name in clients}
        await_true(
            lambda: all(self.ledger.accepted_of(name) >= before[name] + A_WHILE for name in clients),
            lambda: f"{before} went on to { {name: self.ledger.accepted_of(name) for name in clients} }",
        )

    def newest(self) -> list[str]:
        """Name the last message of each client."""
        in_order = sorted(self.ledger.accepted(), key=lambda name: int(name.rpartition("-")[2]))
        return [*{name.rpartition("-")[0]: name for name in in_order}.values()]

    def _killed_halfway(self, pending: list[str]) -> None:
        """Kill it in its last migration, all others of which are applied, while everybody sends."""
        with ExitStack() as undo:
            holding, watching = (undo.enter_context(self.database.connect()) for _ in range(2))
            with holding.transaction(force_rollback=True):
                # It waits for whoever seems to be about to note the same.
                holding.execute(_UNKNOWN, [pending[-1]])
                with self.first.began("db", "migrate") as pid:
                    await_true(lambda: watching.execute(_HELD_UP).rowcount, "it is in its last migration")
                    self._go_on(self.second)
                    os.kill(pid, signal.SIGKILL)
            await_true(lambda: not watching.execute(_AT_WORK).rowcount, "its connection is gone")
        left = names(self.first.asked("db", "status"), "pending")
        assert left == pending[-1:], f"{left} of {pending} are left"


def names(status: Any, state: str) -> list[str]:
    """Name the migrations in a state; rights are none, and can be given back."""
    return [str(one["name"]) for one in status if one["state"] == state and one["name"] != RIGHTS]
