"""A copy-on-write copy of a whole system: what a test installs into it is gone with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import patience_s

ORIGINAL = Path(os.environ.get("OPENSEND_TEST_ROOT", "/"))
"""What is copied: this system, or one that debootstrap made."""


@dataclass(frozen=True, slots=True)
class OverlaidSystem:
    """The copy, and a way to run something in it."""

    root: Path

    def path(self, inside: str | Path) -> Path:
        """Return where a path of the copy is to be seen from outside."""
        return self.root / str(inside).lstrip("/")

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the copy to its end."""
        done = subprocess.run(
            ["chroot", str(self.root), *command],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=patience_s(),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/", **environment},
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def why_not() -> str:
    """Say why this machine cannot make a copy, or nothing where it can."""
    if os.geteuid():
        return "needs root"
    try:
        with overlaid_system() as copy:
            copy.run("/bin/true")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine mounts no overlay: {error}"
    return ""


@contextmanager
def overlaid_system() -> Iterator[OverlaidSystem]:
    """Make the copy; nothing of it is left afterwards."""
    place = Path(tempfile.mkdtemp(prefix="os-copy-", dir="/tmp"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, place)
        _mount(undo, place, "-t", "tmpfs", "-o", "mode=0755", "tmpfs")
        for name in ("upper", "work", "root"):
            (place / name).mkdir(mode=0o755)
        layers = f"lowerdir={ORIGINAL},upperdir={place / 'upper'},workdir={place / 'work'}"
        _mount(undo, place / "root", "-t", "overlay", "-o", layers, "overlay")
        root = place / "root"
        _mount(undo, root / "proc", "-t", "proc", "proc")
        _mount(undo, root / "dev", "--bind", "/dev")
        for name, mode in (("run", "0755"), ("tmp", "1777"), ("var/tmp", "1777")):
            _mount(undo, root / name, "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs")
        yield OverlaidSystem(root)


@contextmanager
def bound(outside: Path, inside: Path) -> Iterator[None]:
    """Show a directory of this system in the copy too."""
    inside.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        _mount(undo, inside, "--bind", str(outside))
        yield


def _mount(undo: ExitStack, place: Path, *arguments: str) -> None:
    subprocess.run(["mount", *arguments, str(place)], check=True, capture_output=True)
    undo.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
