"""What is compared: one sandbox, and Postfix instances that differ from its own in the milter alone."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg
import yaml
from psycopg import sql

from bench.goals import ALONE, C_MILTER, OURS, PYMILTER, STATIC_AUTH
from bench.load import Load
from bench.processes import Groups
from opensend_milter.config import Config, load as load_config
from opensend_milter.host import requirements
from opensend_milter.host.rendering.certificates import find_certificate
from opensend_milter.host.rendering.dovecot import DovecotSite, Version, render_dovecot
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from opensend_milter.host.sandbox.keeper import heir
from opensend_milter.host.sandbox.programs import WRITTEN_AT, accepts, greets_as_dovecot, greets_as_smtp
from opensend_milter.host.sandbox.state import Profile

PATIENCE_S = 60.0
PAUSE_S = 0.02
_HERE = Path(__file__).parent
FILLED = (
    "public.emails", "opensend_milter.submissions", "opensend_milter.raw_chunks", "opensend_milter.jobs",
    "opensend_milter.fingerprints", "opensend_milter.refusals", "public.logs",
)  # fmt: skip
"""What a message leaves behind; keys, domains and the like stay."""
_STATIC_PASSDB: Mapping[Version, str] = {
    "2.3": "passdb {\n  driver = static\n  args = nopassword=y user=bench\n}\n",
    "2.4": "passdb static {\n  fields {\n    nopassword = yes\n    user = bench\n  }\n}\n",
}


def await_true(what: str, condition: Callable[[], bool]) -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A Postfix with what stands behind it."""

    name: str
    port: int
    groups: Groups
    key: str
    ca: str
    sender: str
    queue: Path | None = None
    """Where it delivers by itself."""

    def load(self, **wishes: object) -> Load:
        """Return a load for it."""
        return Load(port=self.port, key=self.key, ca=self.ca, sender=self.sender, **wishes)  # type: ignore[arg-type]  # the caller's names are Load's

    def settle(self) -> None:
        """Wait until nothing is left to deliver: that work belongs to the messages, too."""
        if self.queue:
            await_true(f"{self.name}: an empty queue", self._is_empty)

    def _is_empty(self) -> bool:
        if not self.queue:
            return True
        waiting = (path for name in ("incoming", "active", "maildrop") for path in (self.queue / name).rglob("*"))
        return not any(path.is_file() for path in waiting)


@dataclass(slots=True)
class Stand:
    """A sandbox whose worker is stopped, and a place for what is started beside it."""

    directory: Path
    env: Mapping[str, str]
    stack: ExitStack
    pids: dict[str, int] = field(default_factory=dict)
    filled: Sequence[str] = FILLED

    @property
    def config(self) -> Config:
        return load_config(self.directory / "opensend-milter.yaml", {})

    @property
    def place(self) -> Path:
        return self.directory / "beside"

    def program_pids(self) -> dict[str, int]:
        rows = json.loads((self.directory / "run" / "children.json").read_text())
        return {row["name"]: row["pid"] for row in rows}

    def check(self) -> None:
        """End where a program was started again: what was counted for it is lost."""
        if self.program_pids() != self.pids:
            raise SystemExit(f"a program died during the measurement: see {self.directory / 'log'}")

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.env["SANDBOX_DATABASE_URL"], autocommit=True)

    def empty(self) -> None:
        """Forget the messages, so that no round has more rows to look through than another."""
        with self.connect() as connection:
            tables = sql.SQL(", ").join(sql.Identifier(*name.split(".")) for name in self.filled)
            connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(tables))
            connection.execute("CHECKPOINT")

    def stop_worker(self) -> None:
        """Freeze it between two transactions: nothing is delivered, and the keeper sees it alive."""
        pid = self.pids["worker"]
        with self.connect() as connection:
            while True:
                os.kill(pid, signal.SIGSTOP)
                busy = "SELECT 1 FROM pg_stat_activity WHERE usename = 'opensend_worker' AND xact_start IS NOT NULL"
                if not connection.execute(busy).fetchone():
                    break
                os.kill(pid, signal.SIGCONT)
                time.sleep(PAUSE_S)
        self.stack.callback(os.kill, pid, signal.SIGCONT)

    def write_config(self, name: str, changes: Mapping[str, Mapping[str, object]]) -> Path:
        """Write the sandbox's configuration with some options otherwise."""
        content = yaml.safe_load((self.directory / "opensend-milter.yaml").read_text())
        for section, options in changes.items():
            content.setdefault(section, {}).update(options)
        path = self.place / f"{name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def run(self, name: str, command: Sequence[str], *, own_session: bool = True) -> int:
        """Start a program that lives as long as we do; return its pid."""
        # Linux divides a busy machine among sessions: in ours it would have to share with the load generator.
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_HERE.parent,
                env=requirements.environment({}), start_new_session=own_session,
                preexec_fn=heir(signal.SIGTERM),  # noqa: PLW1509  # one thread
            )  # fmt: skip
        self.stack.callback(_end, process)
        return process.pid

    def run_ours(self, name: str, command: str, config: Path) -> int:
        return self.run(name, [sys.executable, "-P", "-m", "opensend_milter", command, "--config", str(config)])

    # ------------------------------------------------------------------ systems

    def ours(self, name: str = OURS, *, serve: int | None = None, socket: Path | None = None) -> System:
        """Return the product, with a `serve` as it is shipped: the sandbox's own has two processes on any machine."""
        if serve is None or socket is None:
            socket = self.place / "ours.sock"
            shipped = {"socket": str(socket), "processes": 0}
            serve = self.run_ours("ours-serve", "serve", self.write_config("ours", {"milter": shipped}))
            await_true("serve", partial(accepts, socket))
        return self._system(name, serve, socket)

    def alone(self) -> System:
        """Return Postfix without a milter; it takes a message to its queue, and delivers it to nobody."""
        overrides = {"smtpd_milters": "", "smtpd_data_restrictions": "", "default_transport": "discard:"}
        return self._system(ALONE, None, None, overrides, delivers=True)

    def c_milter(self) -> System:
        """Compile it and start it."""
        program, path = self.place / "null_milter", self.place / "c.sock"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler or not Path("/usr/include/libmilter/mfapi.h").exists():
            raise SystemExit(
                "the empty C milter needs a C compiler and libmilter-dev: apt-get install gcc libmilter-dev"
            )
        source = str(_HERE / "null_milter.c")
        subprocess.run([compiler, "-O2", "-o", str(program), source, "-lmilter", "-lpthread"], check=True)
        pid = self.run("c-milter", [str(program), str(path)])
        await_true("the empty C milter", partial(accepts, path))
        return self._system(C_MILTER, pid, path)

    def pymilter(self) -> System:
        path = self.place / "py.sock"
        pid = self.run("pymilter", [sys.executable, str(_HERE / "null_milter.py"), str(path)])
        await_true("the empty pymilter", partial(accepts, path))
        return self._system(PYMILTER, pid, path)

    def static_auth(self) -> System:
        """Return a Postfix whose Dovecot says yes without asking the database; the gate stands between as always."""
        config = self.write_config(
            "static-auth",
            {"auth": {"socket": str(self.place / "gate.sock"), "dovecot_socket": str(self.place / "dovecot.sock")}},
        )
        auth = load_config(config, {}).auth
        dovecot = self.run("static-dovecot", self._static_dovecot(load_config(config, {})))
        await_true("Dovecot", partial(greets_as_dovecot, auth.dovecot_socket))
        gate = self.run_ours("static-gate", "auth-gate", config)
        await_true("the auth gate", partial(greets_as_dovecot, auth.socket))
        system = self._system(STATIC_AUTH, None, self.config.milter.socket, {"smtpd_sasl_path": str(auth.socket)})
        return dataclasses.replace(system, groups={**system.groups, "auth": (dovecot, gate)})

    def _static_dovecot(self, config: Config) -> list[str]:
        version: Version = "2.3" if requirements.dovecot_version().startswith("2.3") else "2.4"
        folder = self.place / "dovecot"
        site = DovecotSite(
            config_dir=folder, base_dir=folder / "run", state_dir=folder / "state",
            log_file=folder / "dovecot.log", version=version,
        )  # fmt: skip
        for path in (folder, site.base_dir, site.state_dir):
            path.mkdir(mode=0o755)
        main = render_dovecot(config, site)["dovecot.conf"]
        main, count = re.subn(r"^passdb .*?^\}\n", _STATIC_PASSDB[version], main, flags=re.MULTILINE | re.DOTALL)
        if count != 1:
            raise SystemExit("Dovecot's configuration has no passdb to replace")
        (folder / "dovecot.conf").write_text(main)
        return [machine_program("dovecot"), "-F", "-c", str(folder / "dovecot.conf")]

    def _system(
        self,
        name: str,
        milter: int | None,
        socket: Path | None,
        overrides: Mapping[str, str] | None = None,
        *,
        delivers: bool = False,
    ) -> System:
        port = requirements.free_ports(["smtp"])["smtp"]
        folder = self.place / name.replace(" ", "-")
        config = dataclasses.replace(
            self.config,
            smtp=dataclasses.replace(
                self.config.smtp,
                relay_port=port,
                submission_port=0,
                smtps_port=0,
                client_share_percent=100,  # all sessions are of one address
            ),
            milter=dataclasses.replace(self.config.milter, socket=socket or self.config.milter.socket),
        )
        # It makes its own session, and fails where it has one.
        master = self.run(folder.name, _postfix(folder, config, overrides or {}), own_session=False)
        await_true(f"Postfix for {name}", partial(greets_as_smtp, port))
        groups = {
            "postfix": (master,),
            "milter": (milter,) if milter else (),
            "postgres": (self.pids["postgres"],),
            "auth": (self.pids["dovecot"], self.pids["auth-gate"]),
        }
        return self.at(name, port, groups, queue=folder / "queue" if delivers else None)

    def at(self, name: str, port: int, groups: Groups, *, queue: Path | None = None) -> System:
        """Return what listens on a port and takes the sandbox's key."""
        return System(
            name=name,
            port=port,
            groups=groups,
            key=self.env["SANDBOX_API_KEY"],
            ca=self.env["SANDBOX_TLS_CA"],
            sender=f"bench@{self.env['SANDBOX_FROM_DOMAIN']}",
            queue=queue,
        )


def machine_program(name: str) -> str:
    """Find a server's program."""
    return shutil.which(name, path=requirements.search_path()) or name


def _postfix(folder: Path, config: Config, overrides: Mapping[str, str]) -> list[str]:
    """Write an instance as the sandbox writes its own; return the command that runs it."""
    site = PostfixSite(
        config_dir=folder / "conf",
        queue_dir=folder / "queue",
        data_dir=folder / "data",
        log_file=folder / "log" / "postfix.log",
        certificate=find_certificate(config.tls),
        hostname=config.smtp.hostname,
        syslog_name="postfix-bench",
    )
    for path in (folder, site.config_dir, site.queue_dir, site.data_dir, folder / "log"):
        path.mkdir(mode=0o755)
    os.chown(site.data_dir, pwd.getpwnam("postfix").pw_uid, -1)
    files = dict(render_postfix(config, site))
    for name, value in overrides.items():
        files["main.cf"] = overridden(files["main.cf"], name, value)
    for name, content in files.items():
        (site.config_dir / name).write_text(content)
        os.utime(site.config_dir / name, (WRITTEN_AT, WRITTEN_AT))
    subprocess.run(
        [machine_program("postfix"), "-c", str(site.config_dir), "check"], check=True, env=requirements.environment({})
    )
    asked = [machine_program("postconf"), "-c", str(site.config_dir), "-h", "daemon_directory"]
    daemons = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    return [f"{daemons}/master", "-c", str(site.config_dir), "-s"]


def overridden(main: str, name: str, value: str) -> str:
    """Replace one parameter of a main.cf, lines that continue it included; it must be there once."""
    pattern = rf"^{re.escape(name)} =.*\n(?:[ \t].*\n)*"
    changed, count = re.subn(pattern, lambda _: f"{name} = {value}\n", main, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"main.cf: {name} is there {count} times")
    return changed


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def sandbox(command: str, directory: Path, *options: str) -> str:
    """Run a sandbox command; return what it printed."""
    asked = [sys.executable, "-m", "opensend_milter", "sandbox", command, "--dir", str(directory), *options]
    return subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True, cwd=_HERE.parent).stdout


@contextmanager
def running_stand(profile: Profile = "standalone") -> Iterator[Stand]:
    """Bring up a sandbox with durable commits, stop its worker, and take all down again."""
    # What a caller stops us with is to take the servers down, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as made, ExitStack() as stack:
        directory = Path(made)
        directory.chmod(0o755)
        sandbox("up", directory, "--profile", profile)
        stack.callback(sandbox, "down", directory)
        stand = Stand(
            directory=directory,
            env=json.loads(sandbox("env", directory, "--json")),
            stack=stack,
        )
        stand.pids = stand.program_pids()
        stand.place.mkdir(mode=0o755)
        stand.stop_worker()
        yield stand
