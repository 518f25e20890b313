"""A copy-on-write copy of this whole system with a systemd of its own; nothing of it outlasts the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.copied_system import CHECKOUT, CopiedSystem, clean_environment
from tests.waiting import await_true

HOME = Path("/opt/opensend-milter")
PROGRAM = HOME / "bin" / "opensend-milter"
DATABASE_DIR = Path("/srv/postgres")
_SYSTEMD = Path("/lib/systemd/systemd")
_CGROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
_SOURCE = f"""#!{HOME}/bin/python
import sys
sys.path.insert(0, "{HOME}/checkout")
from opensend_milter.cli import main
main()
"""
_KEEP = """
# Ends what it began when the pipe closes, which it does where the tests are killed too.
group=$1 directory=$2
shift
mkdir "$group" || { echo; exit; }
{
    sh -c 'echo $$ >"$0/cgroup.procs" && exec unshare "$@"' "$group" \
        --pid --mount --net --uts --ipc --cgroup --fork --kill-child sh -c "$BOOT" sh "$@"
    echo
} </dev/null &
cat >/dev/null
echo 1 >"$group/cgroup.kill"
wait
for try in $(seq 200); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.05
done
rmdir "$directory"
"""
_BOOT = """
set -e
# Our number outside: this is still the /proc of there.
read -r pid rest </proc/self/stat
directory=$1 home=$2 lib=$3 checkout=$4 database=$5 inside=$6
mount -t tmpfs -o mode=0755 tmpfs "$directory"
cd "$directory"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs dev
mknod -m 0666 dev/null c 1 3
mknod -m 0666 dev/zero c 1 5
mknod -m 0666 dev/full c 1 7
mknod -m 0666 dev/random c 1 8
mknod -m 0666 dev/urandom c 1 9
mknod -m 0666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# Of this system's own units nothing is to start but what every service needs.
for target in sysinit sockets timers local-fs multi-user; do
    for place in lib/systemd/system etc/systemd/system; do
        place=$place/$target.target.wants
        [ ! -d "$place" ] || mount -t tmpfs -o mode=0755 tmpfs "$place"
    done
done
mkdir -p run/systemd/system
ln -s /dev/null run/systemd/system/systemd-journald-audit.socket
ln -s ../systemd-journald.service ../systemd-tmpfiles-setup.service lib/systemd/system/sysinit.target.wants/
ln -s ../dbus.socket lib/systemd/system/sockets.target.wants/
mkdir -p ".$home/bin" ".$home/lib" ".$home/checkout" ".$inside"
mount --bind "$lib" ".$home/lib"
mount --bind "$checkout" ".$home/checkout"
mount --bind "$database" ".$inside"
ln -s /usr/bin/python3 ".$home/bin/python"
echo "home = /usr/bin" >".$home/pyvenv.cfg"
echo "$SOURCE" >".$home/bin/opensend-milter"
chmod 0755 ".$home/bin/opensend-milter"
# What was written is to be seen there, beneath what is unmounted.
mount --bind "$directory" mnt
pivot_root . mnt
umount --lazy mnt
# As outside of a container it does itself: credentials are mounted by a process of its own.
mount --make-rshared /
echo "$pid"
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    /lib/systemd/systemd --unit=basic.target --show-status=no
"""


class SystemdHost(CopiedSystem):
    """The copy; its first process is systemd."""

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    @property
    def _upper(self) -> Path:
        return self.root / "mnt/upper"

    def command(self, *argv: str) -> list[str]:
        """Return what runs a command there."""
        return ["nsenter", f"--target={self.pid}", "--all", *argv]

    def install(self, *options: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `opensend-milter install` there."""
        return self.run(str(PROGRAM), "install", *options, check=check, environment=environment)

    def systemctl(self, *argv: str, check: bool = True) -> str:
        """Run systemctl there; return what it says."""
        return self.run("systemctl", "--no-pager", *argv, check=check).stdout.strip()

    def shown(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def journal(self, unit: str) -> str:
        """Return what a unit has logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def times_said(self, unit: str, text: str) -> int:
        """Count a text in what a unit has logged."""
        return self.journal(unit).count(text)


@contextmanager
def booted(database_dir: Path) -> Iterator[SystemdHost]:
    """Boot it, with the program below /opt and a directory of this system in it; skip where the machine cannot."""
    if reason := _why_not():
        pytest.skip(f"a systemd of its own needs {reason}")
    directory = Path(tempfile.mkdtemp(prefix="os-boot-", dir="/tmp"))
    group = _control_groups() / directory.name
    inside = (HOME, Path(sys.prefix) / "lib", CHECKOUT, database_dir, DATABASE_DIR)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            ["sh", "-c", _KEEP, "sh", str(group), str(directory), *map(str, inside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
            env={**clean_environment(), "BOOT": _BOOT, "SOURCE": _SOURCE},
        ) as keeper,
    ):
        assert keeper.stdout
        pid = keeper.stdout.readline().strip()
        if not pid:
            said.seek(0)
            pytest.skip(f"a systemd of its own needs namespaces and overlayfs: {said.read().decode()}")
        host = SystemdHost(int(pid), directory)
        await_true(lambda: host.systemctl("is-system-running", check=False) == "running", "it has booted")
        yield host


def _why_not() -> str:
    if os.geteuid():
        return "root"
    if not _SYSTEMD.is_file():
        return "the package systemd"
    if not _control_groups().is_dir():
        return "control groups, version 2"
    return ""


def _control_groups() -> Path:
    return next((place for place in _CGROUPS if (place / "cgroup.procs").is_file()), Path("/nonexistent"))
