"""A copy-on-write copy of this whole system, with processes and a network of its own; nothing outlasts the test."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import opensend_milter
from tests.waiting import scaled_s

CHECKOUT = Path(opensend_milter.__file__).parents[1]
COMMAND_S = 120.0
_LOOPBACK_UP = (
    "import fcntl, socket, struct; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0x49))"
)
_SCRIPT = """
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"; python=$2; shift 2
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --bind /dev root/dev
mount -t proc proc root/proc
for place; do mount --bind "$place" "root$place"; done
"$python" -c "$LOOPBACK"
echo ready
# Ends with us: the pipe closes, this ends, and with the first process of its namespace all others do.
exec cat
"""

State = tuple[object, ...]


@dataclass(slots=True)
class CopiedSystem:
    """The copy; `root` is where its files are for us."""

    pid: int
    directory: Path

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.directory}/root")

    @property
    def _upper(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.directory}/upper")

    def command(self, *argv: str) -> list[str]:
        """Return what runs a command there."""
        return [*self._entered(), "chroot", f"{self.directory}/root", *argv]

    def _entered(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net"]

    def run(
        self, *argv: str, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return self._run(self.command(*argv), check=check, environment=environment)

    def install(self, *options: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `opensend-milter install` there."""
        return self.run(*INSTALL, *options, check=check, environment=environment)

    def install_from_outside(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `opensend-milter install --root` beside it."""
        argv = [*self._entered(), *INSTALL, "--root", f"{self.directory}/root", *options]
        return self._run(argv, check=check, environment=None)

    @staticmethod
    def _run(
        argv: list[str], *, check: bool, environment: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            timeout=scaled_s(COMMAND_S),
            stdin=subprocess.DEVNULL,
            env={**clean_environment(), **(environment or {})},
        )
        if check:
            assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file there."""
        place = self.root / path.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        place.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path.removeprefix("/")).read_text(errors="replace")

    def written(self) -> dict[str, State]:
        """Return all that is not as in the system it is a copy of."""
        found = {}
        for folder, folders, files in os.walk(self._upper):
            for name in ("", *folders, *files):
                place = Path(folder, name).relative_to(self._upper)
                found[f"/{place}".replace("/.", "/", 1) if place == Path() else f"/{place}"] = state_of(
                    self.root / place
                )
        return found

    def changes(self, before: Mapping[str, State]) -> set[str]:
        """Name what differs from what `written` said then: content, mode, owner, time, or whether it is there."""
        now = self.written()
        found = set()
        for path in {*before, *now}:
            then = before[path] if path in before else state_of(Path(path))
            if state_of(self.root / path.removeprefix("/")) != then:
                found.add(path)
        return found


INSTALL = (
    sys.executable, "-P", "-c",
    "import typer; from opensend_milter.cli.machine.install import install; typer.run(install)",
)  # fmt: skip


def clean_environment() -> dict[str, str]:
    """Return the environment of what is run there."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
    }


def state_of(path: Path) -> State:
    """Return all that a restored file must have again."""
    try:
        known = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ("absent",)
    common = (stat.filemode(known.st_mode), known.st_uid, known.st_gid, known.st_mtime_ns)
    if stat.S_ISLNK(known.st_mode):
        return (*common, str(path.readlink()))
    if stat.S_ISREG(known.st_mode):
        return (*common, hashlib.sha256(path.read_bytes()).hexdigest())
    return common


@contextmanager
def copied_system(*shared: Path) -> Iterator[CopiedSystem]:
    """Make a copy; `shared` directories are the very same in it. Skip where the machine cannot."""
    if os.geteuid() != 0:
        pytest.skip("a copy of the system needs root")
    directory = Path(tempfile.mkdtemp(prefix="os-copy-", dir="/tmp"))
    argv = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", _SCRIPT, "sh"]
    try:
        with subprocess.Popen(
            [*argv, str(directory), sys.executable, *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**clean_environment(), "LOOPBACK": _LOOPBACK_UP},
        ) as holder:
            assert holder.stdout
            assert holder.stderr
            if holder.stdout.readline() != b"ready\n":
                pytest.skip(f"a copy of the system needs namespaces and overlayfs: {holder.stderr.read().decode()}")
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            system = CopiedSystem(int(children[0]), directory)
            if not (system.root / CHECKOUT.relative_to("/")).is_dir():
                pytest.skip(f"{CHECKOUT} is on another file system than /")
            yield system
    finally:
        directory.rmdir()
