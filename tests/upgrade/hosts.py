"""Hosts with a systemd of their own and one database: what the package and `install` do to them, and what they keep."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.copied_system import State, clean_environment
from tests.integration.private_postgres import PASSWORD, SUPERUSER, Cluster
from tests.integration.systemd_host import DATABASE_DIR, SystemdHost, booted
from tests.integration.test_install import furnish
from tests.integration.test_install_running import OF_RUNNING
from tests.upgrade.ledger import token_in
from tests.waiting import await_true

DATABASE = "upgraded"
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_LEFT = (*OF_RUNNING, "/usr/", "/var/lib/dpkg/", "/var/lib/systemd/", "/var/cache/", "/var/tmp/")
_ACCOUNTS = re.compile(r"/etc/(passwd|group|g?shadow)-?$|/etc/\.pwd\.lock$")
"""What dpkg, useradd and programs that ran keep; tests/integration/test_package.py looks after those."""


@dataclass(slots=True)
class MailHost:
    """One host; `before` is what it was without us."""

    name: str
    system: SystemdHost
    port: int
    before: Mapping[str, State]

    def install_package(self, package: Path) -> None:
        """Install it, or install it over another: what runs is started anew."""
        shutil.copy(package, self.system.root / "tmp/package.deb")
        self.system.run("dpkg", "-i", "/tmp/package.deb", environment={"DEBIAN_FRONTEND": "noninteractive"})

    def take_passwords_of(self, other: MailHost) -> None:
        """Have the roles' passwords, which are the same on each host, as docs/deploying.md says."""
        folder = "etc/opensend-milter/passwords"
        shutil.copytree(other.system.root / folder, self.system.root / folder)

    def ours(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run our program there, as the owner of the tables."""
        return self.system.run("opensend-milter", *argv, check=check, environment={"DATABASE_URL": self._owner_url})

    def asked(self, *argv: str) -> Any:
        """Return what our program says as JSON."""
        return json.loads(self.ours(*argv, "--json", check=False).stdout)

    @contextmanager
    def began(self, *argv: str) -> Iterator[int]:
        """Begin to run our program there; hand out its number, and wait for its end, whichever."""
        with subprocess.Popen(
            self.system.command("opensend-milter", *argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**clean_environment(), "DATABASE_URL": self._owner_url},
        ) as entered:  # fmt: skip
            children = Path(f"/proc/{entered.pid}/task/{entered.pid}/children")
            # nsenter hands no signal on.
            await_true(children.read_text, "it runs")
            yield int(children.read_text().split()[0])

    def configure(self, more: str) -> None:
        """Add something to its configuration; `install --apply` has it done."""
        path = self.system.root / "etc/opensend-milter/opensend-milter.yaml"
        path.write_text(path.read_text() + more)

    @property
    def _owner_url(self) -> str:
        return f"postgresql://{SUPERUSER}:{PASSWORD}@/{DATABASE}?host={DATABASE_DIR}&port={self.port}"

    @contextmanager
    def network(self) -> Iterator[None]:
        """Let the running thread open its sockets there."""
        with Path("/proc/thread-self/ns/net").open() as back, Path(f"/proc/{self.system.pid}/ns/net").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(back.fileno())

    def tls(self) -> ssl.SSLContext:
        """Return what trusts its certificate."""
        context = ssl.create_default_context(cafile=str(self.system.root / "etc/ssl/mail/ca.pem"))
        context.check_hostname = False
        return context

    def delivered(self) -> list[str]:
        """Name what its worker has delivered, each as often as it did."""
        folder = self.system.root / "var/lib/opensend-milter/maildir/new"
        texts = (path.read_text(errors="replace") for path in folder.iterdir()) if folder.is_dir() else ()
        return [found for text in texts if (found := token_in(text))]

    def traces(self) -> set[str]:
        """Name what is not as it was before our package came."""
        changed = {path for path in self.system.changes(self.before) if not _ACCOUNTS.match(path)}
        # Of a folder that was there, the time alone may be another.
        return {
            path
            for path in changed
            if not (f"{path}/".startswith(_LEFT) or ((self.system.root / path[1:]).is_dir() and Path(path).is_dir()))
        }


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def booted_host(name: str, cluster: Cluster) -> Iterator[MailHost]:
    """Boot one; its own Postfix is no business of ours."""
    with booted(cluster.directory) as system:
        furnish(system, f"postgresql:///{DATABASE}?host={DATABASE_DIR}&port={cluster.port}")
        # Its configuration is ours, too.
        before = {
            path: state for path, state in system.written().items() if not path.startswith("/etc/opensend-milter")
        }
        yield MailHost(name, system, cluster.port, before)
