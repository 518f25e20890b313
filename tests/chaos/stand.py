"""What is attacked: a sandbox whose next hop, database, disks and Amazon are in our hands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
import yaml
from psycopg.rows import TupleRow

from opensend_milter.host import requirements
from opensend_milter.host.sandbox import state as sandbox_state
from tests.acceptance.running_sandbox import Sandbox, new_directory
from tests.acceptance.submitting import rows
from tests.chaos.amazon import Amazon
from tests.chaos.cable import Cable
from tests.chaos.clients import Entrance, Entrances, mark_of
from tests.chaos.disk import Disk, mounted
from tests.chaos.ledger import Became
from tests.smtp_sink import Sink
from tests.waiting import await_found, await_true, patience_s

OURS = ("serve", "auth-gate", "dovecot", "worker", "http")
NEXT_HOP_S = 5.0
"""For each answer: a next hop that hangs is to be given up during the fault."""
LEASE_S = 10.0
SPOOL_ABOVE_BYTES = 65_536
REFUSED = "550 5.7.1 not wanted here: chaos"
"""What the next hop says for good; whoever hears it fails rightly."""
DISKS = {"postgres": 4_096, "spool": 128, "queue": 256, "log": 2_048}
"""Megabytes; the directories of a sandbox that have a disk of their own."""
SENT_BY_SES = (
    "INSERT INTO opensend_milter.domain_settings (domain_id, courier) SELECT id, 'ses' FROM domains WHERE name = %s"
)
AWS = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox", "AWS_EC2_METADATA_DISABLED": "true"}


class NotRun(Exception):  # noqa: N818  # a word of the table
    """This machine, or this stand, cannot make the fault: why."""


@dataclass(slots=True)
class Stand:
    """A sandbox and what stands around it; None: it has none of that."""

    sandbox: Sandbox
    next_hop: Sink
    cable: Cable | None = None
    """Between everybody and Postgres."""
    amazon: Amazon | None = None
    standby_port: int = 0
    """The second host of `database.url`; nobody listens there by himself."""
    disks: Mapping[str, Disk | str] = field(default_factory=dict)
    """Or why there is none."""
    entrances: Entrances = field(default_factory=Entrances)
    until_whole: ExitStack = field(default_factory=ExitStack)
    """What goes on after a fault is healed, until all clients are served again."""
    _delivered: Counter[str] = field(default_factory=Counter)

    @property
    def directory(self) -> Path:
        return self.sandbox.directory

    @property
    def config(self) -> Path:
        return self.directory / "opensend-milter.yaml"

    def pid(self, name: str) -> int:
        """Return a program's process id, once it has one."""

        def find() -> int | None:
            with suppress(StopIteration):
                return self.sandbox.pid(name)
            return None

        return await_found(find, f"{name} runs")

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def sql(self) -> psycopg.Connection[TupleRow]:
        """Connect as superuser, past the cable and past what is done to others."""
        options = "-c default_transaction_read_only=off -c lock_timeout=30s -c statement_timeout=60s"
        url = self.sandbox["SANDBOX_DATABASE_URL"]
        return psycopg.connect(url, autocommit=True, options=options, connect_timeout=10)

    @contextmanager
    def keeper_asleep(self) -> Iterator[None]:
        """Let nobody start a program anew meanwhile."""
        keeper = int((self.directory / sandbox_state.LOCK_FILE).read_text())
        os.kill(keeper, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(keeper, signal.SIGCONT)

    @contextmanager
    def another(self, name: str, config: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run one more process of ours beside those that the sandbox has."""
        command = [sys.executable, "-P", "-m", "opensend_milter", name, "--config", str(config)]
        with (
            (self.directory / "log" / f"another-{name}.log").open("ab") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                env=requirements.environment(AWS),
            ) as process,
        ):  # fmt: skip
            try:
                yield process
            finally:
                process.terminate()

    @contextmanager
    def instead(self, name: str, stop: int, environment: Mapping[str, str]) -> Iterator[None]:
        """Run one of its programs with more in its environment, once it has ended as it was; then as it was again."""
        was = self.pid(name)
        process = Path(f"/proc/{was}")
        command = [word.decode() for word in (process / "cmdline").read_bytes().split(b"\0")[:-1]]
        account, place = process.stat(), (process / "cwd").readlink()
        known = dict(word.decode().split("=", 1) for word in (process / "environ").read_bytes().split(b"\0")[:-1])
        with self.keeper_asleep(), ready_socket(self.directory / "run" / "instead") as (address, await_ready):
            os.kill(was, stop)
            await_true(lambda: ") Z " in (process / "stat").read_text(), f"{name} has ended")
            with (
                (self.directory / "log" / f"{name}.log").open("ab") as log,
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place, user=account.st_uid,
                    group=account.st_gid, extra_groups=[], env={**known, "NOTIFY_SOCKET": address, **environment},
                ) as other,
            ):  # fmt: skip
                try:
                    await_ready()
                    yield
                finally:
                    other.send_signal(stop)
        self.sandbox.await_good()

    def configure(self, changes: Mapping[str, Mapping[str, object]]) -> None:
        """Change the configuration; who is to follow is told by the caller."""
        content = yaml.safe_load(self.config.read_text())
        for section, values in changes.items():
            content.setdefault(section, {}).update(values)
        self.config.write_text(yaml.safe_dump(content, sort_keys=False))

    def restart(self, *names: str) -> None:
        """Let programs end in order, and wait until all of them are back."""
        before = {name: self.pid(name) for name in names}
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        for name, pid in before.items():
            await_true(partial(lambda name, pid: self.pid(name) != pid, name, pid), f"{name} is started anew")
        self.sandbox.await_good()

    def forget(self) -> None:
        """Count what the next hop has, and let it go: a long run has much mail."""
        sink = self.next_hop
        while sink.delivered:  # one by one: its threads go on adding to it
            self._delivered[mark_of(sink.delivered.pop(0).wire)] += 1
        sink.commands.clear()
        with sink._lock:
            sink._open[:] = [one for one in sink._open if one.fileno() >= 0]

    def on_its_way(self) -> list[str]:
        """Describe what is: how many messages, in which state, and what they wait for."""
        query = """
            SELECT count(*), j.state, e.status::text, coalesce(nullif(j.courier, ''), 'the default'), j.last_error,
                round(extract(epoch FROM min(j.not_before) - now())),
                round(extract(epoch FROM min(j.announce_at) - now())),
                round(extract(epoch FROM min(j.lease_until) - now()))
            FROM opensend_milter.jobs j LEFT JOIN emails e ON e.id = j.email_id
            WHERE j.state <> 'uncertain' GROUP BY 2, 3, 4, 5 ORDER BY 1 DESC"""
        with self.sql() as connection:
            found = connection.execute(query).fetchall()
        return [
            f"{count} {state} (email {status}) by {courier}: due in {due} s, announced in {told} s,"
            f" lease ends in {lease} s; last error: {error}"
            for count, state, status, courier, error, due, told, lease in found
        ]

    def hasten(self) -> None:
        """Let all that waits for its time be due: a pause after a fault may be one of minutes."""
        query = (
            "UPDATE opensend_milter.jobs SET not_before = least(not_before, now()), announce_at = now()"
            " WHERE state = 'waiting' AND greatest(not_before, announce_at) > now()"
        )
        with self.sql() as connection:
            connection.execute(query)

    def became(self) -> Became:
        """Read what is stored and what was delivered."""
        self.forget()
        stored: dict[str, list[str]] = {}
        query = (
            "SELECT e.subject, CASE WHEN j.state = 'uncertain' THEN 'uncertain' WHEN e.status = 'failed' AND EXISTS"
            " (SELECT FROM email_events v WHERE v.email_id = e.id AND v.payload::text LIKE %s) THEN 'refused'"
            " WHEN NOT EXISTS (SELECT FROM opensend_milter.submissions s WHERE s.email_id = e.id) THEN 'half stored'"
            " ELSE e.status::text END"
            " FROM emails e LEFT JOIN opensend_milter.jobs j ON j.email_id = e.id"
        )
        with self.sql() as connection:
            for subject, state in connection.execute(query, [f"%{REFUSED[4:]}%"]):
                stored.setdefault(subject.removeprefix("chaos "), []).append(state)
        ses = self.amazon.sent if self.amazon else Counter[str]()
        return Became(rows=stored, delivered=self._delivered + ses)

    @property
    def senders(self) -> list[str]:
        """Where there is an SES, every fourth message is for it."""
        first = f"app@{self.sandbox['SANDBOX_FROM_DOMAIN']}"
        return [first, first, first, f"app@{self.sandbox['SANDBOX_OTHER_DOMAIN']}"] if self.amazon else [first]


@contextmanager
def small_stand() -> Iterator[Stand]:
    """Bring up what a test has time for: no Amazon, no disks, a database that is reached directly."""
    with ExitStack() as stack:
        stand = Stand(Sandbox(new_directory()), stack.enter_context(Sink()))
        stack.callback(stand.sandbox.take_down)
        stand.sandbox.up()
        stand.entrances.known = (Entrance.of(stand.sandbox),)
        stand.configure(_settings(stand))
        stand.restart("worker", "serve")
        yield stand


@contextmanager
def whole_stand(say: Callable[[str], None]) -> Iterator[Stand]:
    """Bring up all of it, with durable commits."""
    with ExitStack() as stack:
        sandbox = Sandbox(new_directory())
        stand = Stand(sandbox, stack.enter_context(Sink()))
        stack.callback(sandbox.run, "down", "--purge", check=False)
        say("a sandbox is made")
        sandbox.run("up", "--queue", "sqs")  # whose own queue slows down with what waits in it: ours stands before it
        sandbox.values = sandbox_state.variables(sandbox.directory, sandbox_state.load(sandbox.directory))
        stand.entrances.known = (Entrance.of(sandbox),)
        sandbox.run("down")
        (sandbox.directory / "spool").mkdir(mode=0o700, exist_ok=True)
        say("it gets disks of its own")
        stand.disks = {
            name: stack.enter_context(mounted(sandbox.directory / name, megabytes)) for name, megabytes in DISKS.items()
        }
        stack.callback(sandbox.run, "down", check=False)
        sandbox.run("up")
        ports = sandbox_state.load(sandbox.directory).ports
        stand.cable = stack.enter_context(Cable(ports["postgres"]))
        stand.amazon = stack.enter_context(Amazon(mark_of))
        (stand.standby_port,) = requirements.free_ports(["standby"]).values()
        stand.configure(_settings(stand))
        say("its programs are told of what stands between")
        stand.restart(*OURS)
        rows(sandbox, SENT_BY_SES, sandbox["SANDBOX_OTHER_DOMAIN"])
        with stand.until_whole:
            yield stand


@contextmanager
def ready_socket(path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Make what a program tells that it is ready (sd_notify); give its address, and what waits for that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(str(path))
        path.chmod(0o666)
        endpoint.settimeout(patience_s())

        def wait() -> None:
            while b"READY=1" not in endpoint.recv(4_096).split(b"\n"):
                pass

        try:
            yield str(path), wait
        finally:
            path.unlink()


def _settings(stand: Stand) -> dict[str, dict[str, object]]:
    settings: dict[str, dict[str, object]] = {
        "relay": {"port": stand.next_hop.port, "timeout_s": NEXT_HOP_S},
        "delivery": {"lease_s": LEASE_S},
        "milter": {"spool_above_bytes": SPOOL_ABOVE_BYTES},
    }
    if stand.cable and stand.amazon:
        hosts = f"host=127.0.0.1,127.0.0.1&port={stand.cable.port},{stand.standby_port}"
        settings["database"] = {"url": f"postgresql://postgres@/opensend?{hosts}&target_session_attrs=primary"}
        path = stand.sandbox["SANDBOX_QUEUE_URL"].split("/", 3)[3]
        settings["aws"] = {"endpoint_url": stand.amazon.url}
        settings["queue"] = {"url": f"{stand.amazon.url}/{path}"}
        settings["ses"] = {"timeout_s": NEXT_HOP_S}
    return settings
