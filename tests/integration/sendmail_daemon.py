"""Debian's Sendmail, set up as docs/mtas.md has it: unpacked in a directory, and run without being installed.

`python -m tests.integration.sendmail_daemon` fetches it beforehand, as `make test` does.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from opensend_milter.host.rendering.certificates import make_certificate
from tests.integration.debian_packages import NotToBeHad, Packages
from tests.ports import free_port
from tests.waiting import await_of, patience_s

PAGE = Path(__file__).parents[2] / "docs" / "mtas.md"
NAME = "relay.example.org"
FETCH_S, FETCH_BEFOREHAND_S, TRIED_LATELY_S = 100.0, 900.0, 1800.0
USER = "nobody"
_AS_ON_ITS_HOST = """\
set -e
hostname {name}
mount --bind {directory}/hosts /etc/hosts
mount --bind {directory}/nsswitch.conf /etc/nsswitch.conf
exec "$@"
"""
"""It looks its own name up, and sleeps for a minute where that has no dot."""


def _trim(root: Path) -> None:
    """Keep what is run: none of it with the rights of a group."""
    for path in (*root.glob("*"), *root.glob("usr/*")):
        if path.relative_to(root).parts[-1] not in {"usr", "lib", "libexec", "share", "bin"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (root / "usr/libexec/sendmail/sendmail").chmod(0o755)


PACKAGES = Packages(name="sendmail", wanted=("sendmail-bin", "m4"), trim=_trim)


def block(kind: str) -> str:
    """Return the one block of its kind on the page."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def replaced(text: str, values: dict[str, str]) -> str:
    """Put other places into the page's text; each must be there."""
    for named, here in values.items():
        assert named in text, named
        text = text.replace(named, here)
    return text


@dataclass(frozen=True, kw_only=True)
class Sendmail:
    """A directory of its own, and two ports."""

    root: Path
    directory: Path
    port: int
    smtps_port: int

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def queued(self) -> list[Path]:
        """What waits in its queue."""
        return list((self.directory / "queue").iterdir())

    def write(self, milter_socket: Path, auth_socket: Path, *, filter_flag: str) -> None:
        """Write its files as the page has them, for this place."""
        (self.directory / "queue").mkdir(mode=0o700)
        shutil.chown(self.directory / "queue", USER)
        made = make_certificate(self.directory, [NAME], now=dt.datetime.now(dt.UTC))
        shutil.chown(made.pair.key, USER)
        (self.directory / "hosts").write_text(f"127.0.0.1 {NAME} localhost\n")
        (self.directory / "nsswitch.conf").write_text("hosts: files\npasswd: files\ngroup: files\n")
        sasl = {"/var/spool/postfix-opensend/opensend-auth/auth.sock": str(auth_socket)}
        (self.directory / "Sendmail.conf").write_text(replaced(block("conf"), sasl))
        here = {
            "/usr/share/sendmail": str(self.root / "usr/share/sendmail"),
            "smmta:postfix": f"{USER}:postfix",
            "/run/opensend-sendmail": str(self.directory),
            "/var/spool/mqueue-opensend": str(self.directory / "queue"),
            "/var/spool/postfix-opensend/opensend-milter/milter.sock": str(milter_socket),
            "F=T,": filter_flag,
            "/etc/mail/opensend": str(self.directory),
            "Port=587": f"Addr=127.0.0.1, Port={self.port}",
            "Port=465": f"Addr=127.0.0.1, Port={self.smtps_port}",
            # Its own directories lie in /tmp.
            "VERSIONID": "define(`confDONT_BLAME_SENDMAIL', `TrustStickyBit')dnl\nVERSIONID",
        }
        (self.directory / "opensend.mc").write_text(replaced(block("m4"), here))
        made_of = [str(self.root / "usr/bin/m4"), str(self.directory / "opensend.mc")]
        done = subprocess.run(made_of, check=True, capture_output=True, text=True, env=self._environment)
        assert not done.stderr
        (self.directory / "opensend.cf").write_text(done.stdout)

    @property
    def _environment(self) -> dict[str, str]:
        libraries = ":".join(map(str, (self.root / "usr/lib").glob("*-linux-gnu*")))
        return {**os.environ, "LD_LIBRARY_PATH": libraries}

    def _greets(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), patience_s()) as endpoint:
            return endpoint.recv(3) == b"220"
        return False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it in front of the milter; without a queue runner, as the page says."""
        program = self.root / "usr/libexec/sendmail/sendmail"
        here = _AS_ON_ITS_HOST.format(name=NAME, directory=self.directory)
        log = self.directory / "sendmail.out"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["unshare", "--uts", "--mount", "sh", "-c", here, "sh",
                 str(program), "-C", str(self.directory / "opensend.cf"), "-bD"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment, start_new_session=True,
            )  # fmt: skip
        try:
            await_of(process, self._greets, log.read_text)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(patience_s())


@contextmanager
def sendmail(milter_socket: Path, auth_socket: Path, *, filter_flag: str = "F=T,") -> Iterator[Sendmail]:
    """Run one; skip where its packages cannot be had."""
    try:
        root = PACKAGES.unpacked(FETCH_S, tried_lately_s=TRIED_LATELY_S)
        if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
            raise NotToBeHad("unshare may not be used here")
    except NotToBeHad as error:
        pytest.skip(f"Sendmail from Debian's packages: {error}")
    directory = Path(tempfile.mkdtemp(prefix="os-sendmail-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        found = Sendmail(root=root, directory=directory, port=free_port(), smtps_port=free_port())
        found.write(milter_socket, auth_socket, filter_flag=filter_flag)
        with found.running():
            yield found
    finally:
        shutil.rmtree(directory)


def main() -> None:
    """Fetch it, or say why not: the tests will be skipped."""
    try:
        PACKAGES.unpacked(FETCH_BEFOREHAND_S)
    except (NotToBeHad, OSError) as error:
        print(f"no Sendmail for the tests: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
