"""Both sides of the auth gate: a client that speaks as Postfix does, a Dovecot that misbehaves, a real one."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.config import load
from opensend_milter.host.rendering.dovecot import DovecotSite, render_dovecot
from tests.integration.private_postgres import Database
from tests.log_scan import Forbidden, assert_clean, look_through
from tests.waiting import await_of, patience_s, scaled_s

TIMEOUT_S, LEAST_S, LONGEST_S = 3.0, 1.0, 9.0
"""Above the two seconds that Dovecot lets a wrong key wait; and the least and the most that may be configured."""
HANG_UP = ""
needs_dovecot = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dovecot", path="/usr/sbin:/usr/bin"), reason="Dovecot and root are needed"
)
REFUSED = "FAIL\t{}\treason=the password must be an API key"


class Client:
    """What smtpd is to the gate: one connection, ids that count up."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(patience_s())
        self._connection.connect(str(path))
        self._reader = self._connection.makefile("r", encoding="utf-8", newline="\n")
        self.greeting = [line.rstrip("\n") for line in iter(self._reader.readline, "DONE\n")]
        self.number = 0
        self.say(f"VERSION\t1\t0\nCPID\t{os.getpid()}")

    def say(self, text: str) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # hear() tells
            self._connection.sendall(text.encode() + b"\n")

    def hear(self) -> str:
        """Return one line, or nothing when the gate has hung up."""
        try:
            return self._reader.readline().rstrip("\n")
        except ConnectionResetError:
            return HANG_UP

    def auth(self, mechanism: str, response: bytes | str | None = None) -> str:
        """Begin an exchange; bytes are encoded, text goes as it is."""
        self.number += 1
        about = "service=smtp\tnologin\tlip=127.0.0.1\trip=127.0.0.1\tsecured"
        initial = "" if response is None else f"\tresp={encoded(response)}"
        self.say(f"AUTH\t{self.number}\t{mechanism}\t{about}{initial}")
        return self.hear()

    def go_on(self, response: bytes | str) -> str:
        self.say(f"CONT\t{self.number}\t{encoded(response)}")
        return self.hear()

    def plain(self, password: str, user: str = "apikey", authzid: str = "") -> str:
        return self.auth("PLAIN", f"{authzid}\0{user}\0{password}".encode())

    @property
    def refused(self) -> str:
        return REFUSED.format(self.number)

    def close(self) -> None:
        self._reader.close()
        self._connection.close()


def encoded(response: bytes | str) -> str:
    return base64.b64encode(response).decode() if isinstance(response, bytes) else response


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def running(command: list[str], output: Path, answers: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        await_of(process, answers, output.read_text)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(patience_s())


class Gate:
    """A gate process of its own, and where all of its logs are."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "gate.sock"
        self.dovecot_socket = directory / "dovecot-auth.sock"
        self.config = directory / "opensend-milter.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self.timeout_s = min(scaled_s(TIMEOUT_S), LONGEST_S)

    def write_config(self, protocol: str = "dovecot", **more: dict[str, object]) -> None:
        auth = {
            "protocol": protocol,
            "socket": str(self.socket),
            "socket_group": "postfix",
            "dovecot_socket": str(self.dovecot_socket),
            "timeout_s": self.timeout_s,
        }
        self.config.write_text(yaml.safe_dump({"auth": auth, "log": {"level": "debug"}, **more}))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "opensend_milter", "auth-gate", "--config", str(self.config)]

    @property
    def log(self) -> str:
        return (self.directory / "gate.log").read_text()

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with running(self.command, self.directory / "gate.log", lambda: connects(self.socket)) as self.process:
            yield self.process
        assert_clean(look_through([self.directory / "gate.log"], Forbidden(addresses=True)))

    def client(self) -> Client:
        return Client(self.socket)


class Upstream:
    """Stands where Dovecot would, and answers every AUTH as told."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self.answer: bytes | None = b""
        """None: silence. Empty: end of file."""
        self.first: list[bytes] = []
        """Before that, one after the other."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._path = path
        self._silent: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            lines = connection.makefile("rb")
            heard: list[str] = []
            while not any(line.startswith("AUTH\t") for line in heard):
                line = lines.readline()
                if not line:
                    break
                heard.append(line.decode().rstrip("\n"))
            lines.close()
            if not heard:
                connection.close()
                return
            self.heard += heard
            answer = self.first.pop(0) if self.first else self.answer
            if answer is None:
                self._silent.append(connection)
                continue
            connection.sendall(b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nDONE\n" + answer)
            connection.close()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self._path))
        self._thread.join()
        for one in (self._listener, *self._silent):
            one.close()


class Real:
    """A gate in front of a real Dovecot in front of a real Postgres, with one key."""

    def __init__(self, gate: Gate, database: Database) -> None:
        self.gate, self.database = gate, database
        with database.connect() as connection:
            store = AdminStore(connection, makes_users=True)
            self.key = store.create_key(name="k", user_id=store.ensure_user("u"), permission="full_access", domain=None)
        site = DovecotSite(
            config_dir=gate.directory / "dovecot",
            base_dir=gate.directory / "run",
            state_dir=gate.directory / "state",
            log_file=gate.directory / "dovecot.log",
        )
        for place in (site.config_dir, site.base_dir, site.state_dir):
            place.mkdir()
        config = load(gate.config, {"DATABASE_URL": database.url})
        for name, content in render_dovecot(config, site).items():
            (site.config_dir / name).write_text(content)

    @contextmanager
    def dovecot(self) -> Iterator[None]:
        command = ["/usr/sbin/dovecot", "-F", "-c", str(self.gate.directory / "dovecot" / "dovecot.conf")]
        output = self.gate.directory / "dovecot.out"
        with running(command, output, lambda: connects(self.gate.dovecot_socket)):
            yield
