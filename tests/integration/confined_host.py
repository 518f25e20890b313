"""A mail host as the units find it: a copied system with our accounts, directories, configuration and program."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import yaml

from opensend_milter.config import load
from opensend_milter.host.examining import units
from opensend_milter.host.installing import shipped_units
from opensend_milter.host.rendering.dovecot import DovecotSite, render_dovecot
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from tests.integration.overlaid_system import OverlaidSystem, bound
from tests.integration.private_postgres import Database
from tests.waiting import PAUSE_S, await_of, await_true, patience_s

ROOT = Path(__file__).resolve().parents[2]
HOME, PROGRAM = Path("/usr/lib/opensend-milter"), Path("/usr/bin/opensend-milter")
NOTIFY = Path("/run/systemd/notify")
ACCEPTED = 202
MESSAGE = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: by SMTP\r\n\r\nHello.\r\n"


@dataclass(slots=True)
class Running:
    """The main process of a unit."""

    process: subprocess.Popen[bytes]
    log_path: Path
    ends_its_own: bool
    """KillMode=mixed: only the main process is told."""

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def stop(self) -> int:
        """Stop it as systemd does; return its exit code."""
        descendants = [] if self.ends_its_own else list(_descendants(self.process.pid))
        for pid in (self.process.pid, *descendants):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return self.process.wait(patience_s())


@dataclass(frozen=True, slots=True)
class Host:
    """The copied system, and what was started on it."""

    system: OverlaidSystem
    logs: Path

    @contextmanager
    def running(
        self, unit: str, *command: str, passing: socket.socket | None = None, notifies: bool = True
    ) -> Iterator[Running]:
        """Start a unit's ExecStart, or another command, under its restrictions; wait until it is ready."""
        running = self._started(unit, command, passing, notifies=notifies)
        try:
            yield running
        finally:
            try:
                if running.process.poll() is None:
                    running.stop()
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
                raise

    def _started(
        self, unit: str, command: tuple[str, ...], passing: socket.socket | None, *, notifies: bool
    ) -> Running:
        place = self.system.path(NOTIFY)
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        log_path = self.logs / f"{unit}-{len(list(self.logs.iterdir()))}.log"
        environment = {"NOTIFY_SOCKET": str(NOTIFY)} if notifies else {}
        if passing:
            environment |= {"PASSED_FD": str(passing.fileno()), "LISTEN_FDNAMES": name_of_socket(unit)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint, log_path.open("wb") as log:
            endpoint.bind(str(place))
            place.chmod(0o777)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.integration.confined", str(self.system.root), unit),
                    *(f"{name}={value}" for name, value in environment.items()),
                    *("--", *command),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(passing.fileno(),) if passing else (),
            )
            running = Running(process, log_path, units.read(unit).last("KillMode") == "mixed")
            if notifies:
                _await_ready(endpoint, running)
        return running

    def run(self, unit: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command under a unit's restrictions to its end."""
        return subprocess.run(
            [sys.executable, "-m", "tests.integration.confined", str(self.system.root), unit, "--", *command],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=patience_s(), stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _descendants(pid: int) -> Iterator[int]:
    """Postfix's master is a child of the script that starts it, and would outlive that."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from _descendants(child)


def name_of_socket(unit: str) -> str:
    """Return what a unit's socket unit calls its socket."""
    return units.read(unit.replace(".service", ".socket")).last("FileDescriptorName")


def _await_ready(endpoint: socket.socket, running: Running) -> None:
    endpoint.settimeout(PAUSE_S)
    said: list[str] = []

    def is_ready() -> bool:
        with suppress(TimeoutError):
            said.extend(endpoint.recv(4096).decode().splitlines())
        return "READY=1" in said

    try:
        await_of(running.process, is_ready, lambda: f"not ready: {said}\n{running.log}")
    except AssertionError:
        running.process.kill()
        running.process.wait()
        raise


@contextmanager
def host_with(
    system: OverlaidSystem, database: Database, settings: Mapping[str, object], *, installed: bool = False
) -> Iterator[Host]:
    """Make the copied system a mail host whose database is the test's, by unix socket.

    `installed`: program, accounts and directories are there already.
    """
    with ExitStack() as undo:
        logs = Path(tempfile.mkdtemp(prefix="os-units-", dir="/tmp"))
        undo.callback(shutil.rmtree, logs)
        if not installed:
            _install_program(undo, system)
            _make_accounts(system)
        # As /run/postgresql is: everybody may go through it to the socket.
        database.cluster.directory.chmod(0o755)
        undo.enter_context(bound(database.cluster.directory, system.path("/run/postgresql")))
        url = f"postgresql:///{database.name}?host=/run/postgresql&port={database.cluster.port}"
        _configure(system, {"database": {"url": url}, **settings}, database.password_dir)
        yield Host(system, logs)


def _install_program(undo: ExitStack, system: OverlaidSystem) -> None:
    """Put the running environment where the package puts its own."""
    home = system.path(HOME)
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    undo.enter_context(bound(Path(sys.prefix) / "lib", home / "lib"))
    # A checkout may be where no unit looks, as below somebody's home.
    undo.enter_context(bound(ROOT, home / "checkout"))
    write_program(system, "opensend-milter", "from opensend_milter.cli import main\nmain()\n")
    system.path(PROGRAM).unlink(missing_ok=True)
    system.path(PROGRAM).symlink_to(HOME / "bin" / "opensend-milter")


def write_program(system: OverlaidSystem, name: str, source: str) -> Path:
    """Put a program beside ours, run by the same interpreter; return its path in the copy."""
    path = HOME / "bin" / name
    head = f"#!{HOME}/bin/python\nimport sys\nsys.path.insert(0, '{HOME}/checkout')\n"
    system.path(path).write_text(head + source)
    system.path(path).chmod(0o755)
    return path


def _make_accounts(system: OverlaidSystem) -> None:
    for kind in ("sysusers", "tmpfiles"):
        name = f"opensend-milter.{kind}.conf"
        place = system.path(f"/usr/lib/{kind}.d/opensend-milter.conf")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shipped_units.folder() / name, place)
    system.run("systemd-sysusers", "opensend-milter.conf")
    system.run("systemd-tmpfiles", "--create", "opensend-milter.conf")


def _configure(system: OverlaidSystem, settings: Mapping[str, object], password_dir: Path) -> None:
    etc = system.path("/etc/opensend-milter")
    shutil.copytree(password_dir, etc / "passwords")
    (etc / "passwords").chmod(0o700)
    written = etc / "opensend-milter.yaml"
    written.write_text(yaml.safe_dump(dict(settings)))
    written.chmod(0o640)
    os.chown(written, 0, etc.stat().st_gid)
    # Rendered outside, where the passwords are elsewhere.
    config = load(written, {"OPENSEND_MILTER_DATABASE_PASSWORD_DIR": str(password_dir)})
    dovecot = DovecotSite(
        config_dir=Path("/etc/opensend-milter/dovecot"),
        base_dir=Path("/run/opensend-dovecot"),
        state_dir=Path("/var/lib/opensend-milter/dovecot"),
        log_file=Path("/dev/stderr"),
    )
    postfix = PostfixSite(
        config_dir=Path("/etc/opensend-milter/postfix"),
        queue_dir=Path("/var/spool/postfix-opensend"),
        data_dir=Path("/var/lib/opensend-milter/postfix"),
        log_file=None,
        certificate=None,
        hostname="mail.example.org",
    )
    for site, files in ((dovecot, render_dovecot(config, dovecot)), (postfix, render_postfix(config, postfix))):
        folder = system.path(site.config_dir)
        folder.mkdir(mode=0o700 if site is dovecot else 0o755)
        for name, content in files.items():
            (folder / name).write_text(content)
            (folder / name).chmod(0o600 if site is dovecot else 0o644)


def settings_for(submission_port: int) -> Mapping[str, object]:
    """Return the configuration of a host that delivers into a folder."""
    smtp = {"submission_port": submission_port, "relay_port": 0, "smtps_port": 0}
    return {"smtp": {"host": "127.0.0.1", "plaintext_auth": True, **smtp}, "delivery": {"courier": "file"}}


def mail_flows(host: Host, key: str, submission_port: int) -> None:
    """Start Dovecot, gate, serve, Postfix, worker and HTTP; a message at each door arrives; all end in peace."""
    system = host.system
    auth = system.path("/var/spool/postfix-opensend/opensend-auth/auth.sock")
    with ExitStack() as running, socket.socket(socket.AF_UNIX) as gate, socket.create_server(("127.0.0.1", 0)) as http:
        gate.bind(str(auth))
        gate.listen()
        auth.chmod(0o660)
        os.chown(auth, 0, auth.parent.stat().st_gid)
        running.enter_context(host.running("opensend-dovecot.service", notifies=False))
        ours = [
            running.enter_context(host.running("opensend-milter.service")),
            running.enter_context(host.running("opensend-auth-gate.service", passing=gate)),
            running.enter_context(host.running("opensend-worker.service")),
            running.enter_context(host.running("opensend-http.service", passing=http)),
        ]
        postfix = running.enter_context(host.running("opensend-postfix.service", notifies=False))
        await_true(system.path("/run/opensend-dovecot/auth.sock").exists, "Dovecot's socket")
        await_true(lambda: _answers(submission_port), "answer of Postfix")
        with smtplib.SMTP("127.0.0.1", submission_port, timeout=patience_s()) as client:
            client.login("apikey", key)
            client.sendmail("a@example.org", ["b@example.net"], MESSAGE)
        _post(http.getsockname()[1], key, "by HTTP")
        await_true(lambda: _subjects(system) == {"by SMTP", "by HTTP"}, "both messages")
        assert [one.stop() for one in ours] == [0, 0, 0, 0], [one.log for one in ours]
        assert auth.exists(), "it is systemd's, not the gate's"
        assert postfix.process.poll() is None, postfix.log


def _subjects(system: OverlaidSystem) -> set[str]:
    texts = [path.read_text() for path in system.path("/var/lib/opensend-milter/maildir/new").glob("*")]
    return {found[1] for text in texts if (found := re.search(r"^Subject: (.*?)\r?$", text, re.MULTILINE))}


def _post(port: int, key: str, subject: str) -> None:
    message = {"from": "a@example.org", "to": "b@example.net", "subject": subject, "body": "Hello."}
    client = HTTPConnection("127.0.0.1", port, timeout=patience_s())
    try:
        client.request("POST", "/v1/send", json.dumps(message), {"X-API-Key": key, "Content-Type": "application/json"})
        assert client.getresponse().status == ACCEPTED
    finally:
        client.close()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=patience_s()).close()
    except OSError:
        return False
    return True
