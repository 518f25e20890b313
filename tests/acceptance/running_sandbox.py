"""A sandbox as a test holds it in its hands."""

from __future__ import annotations

import json
import smtplib
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MakeSandbox = Callable[..., "Sandbox"]


def program(*arguments: str, timeout_s: float = 170.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run opensend-milter to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "opensend_milter", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


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

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def up(self, *options: str) -> Sandbox:
        """Start it, or start it again."""
        self.run("up", "--fast", *options)
        self.values = json.loads(self.run("env", "--json").stdout)
        return self

    def run(self, subcommand: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a subcommand of `sandbox` on it."""
        return program("sandbox", subcommand, "--dir", str(self.directory), *options, check=check)

    def pids(self) -> dict[str, int]:
        """Return the process id of each program, and of the keeper."""
        found = json.loads(self.run("status", "--json", check=False).stdout)
        return {"keeper": found["keeper_pid"], **{one["name"]: one["pid"] for one in found["programs"]}}

    def pid(self, name: str) -> int:
        """Return the process id of one program, without asking it whether it answers."""
        programs = json.loads((self.directory / "run" / "children.json").read_text())
        return next(int(one["pid"]) for one in programs if one["name"] == name and one["pid"])

    def await_good(self, timeout_s: float = 60.0) -> None:
        """Wait until all runs and answers."""
        deadline = time.monotonic() + timeout_s
        while (status := self.run("status", check=False)).returncode != 0:
            assert time.monotonic() < deadline, status.stdout

    def connect(self, port: str = "SANDBOX_SMTP_PORT") -> smtplib.SMTP:
        """Open a connection with TLS and without AUTH."""
        context = ssl.create_default_context(cafile=self["SANDBOX_TLS_CA"])
        host, number = self["SANDBOX_SMTP_HOST"], int(self[port])
        if port == "SANDBOX_SMTPS_PORT":
            return smtplib.SMTP_SSL(host, number, timeout=30, context=context)
        client = smtplib.SMTP(host, number, timeout=30)
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
        """List what was delivered, oldest first."""
        return sorted((self.directory / "inbox" / "new").iterdir())

    def log(self, name: str) -> str:
        """Read the log of a program."""
        return (self.directory / "log" / f"{name}.log").read_text(errors="replace")


def new_directory() -> Path:
    """Make a directory that the servers' users can enter and whose path is short."""
    directory = Path(tempfile.mkdtemp(prefix="os-", dir="/tmp"))
    directory.chmod(0o755)
    return directory
