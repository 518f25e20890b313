"""Debian's packages, unpacked in a directory and never installed: fetched once, kept for the next run."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build"
"""Kept for the next run; `make clean` takes it away."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_STATUS = Path("/var/lib/dpkg/status")
_SOURCE = "Types: deb\nURIs: {mirror}\nSuites: {release}\nComponents: main\nSigned-By: {keyring}\n"
_APT = """
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{place}/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{place}/state";
Dir::State::status "{place}/status";
Dir::Cache "{place}/cache";
Dir::Log "{place}/log";
Acquire::Languages "none";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Acquire::Retries "1";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""


class NotToBeHad(Exception):  # noqa: N818  # it is no error of the tests
    """Why they are not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What is wanted, and where it will lie."""

    name: str
    wanted: tuple[str, ...]
    release: str = ""
    """Another one, with all that they need, down to the C library; else this system's, with what it lacks."""
    trim: Callable[[Path], None] = lambda _root: None
    """Called with what was unpacked; may raise NotToBeHad."""

    @property
    def place(self) -> Path:
        return BUILD / self.name

    def unpacked(self, within_s: float, *, tried_lately_s: float = 0.0) -> Path:
        """Return where it is unpacked, fetched now if it has to be; raise NotToBeHad."""
        if os.geteuid() != 0:
            raise NotToBeHad("needs root")
        BUILD.mkdir(exist_ok=True)
        with self._alone():
            if not self.place.is_dir():
                self._fetch_once(within_s, self.place.with_suffix(".failed"), tried_lately_s)
        return self.place

    def _fetch_once(self, within_s: float, failed: Path, tried_lately_s: float) -> None:
        """Fetch it, unless that was tried in vain lately: others would wait as long again."""
        if failed.exists() and time.time() - failed.stat().st_mtime < tried_lately_s:
            raise NotToBeHad(failed.read_text())
        try:
            self._fetch(time.monotonic() + within_s)
        except NotToBeHad as error:
            failed.write_text(str(error))
            raise
        failed.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let the first of several processes do it, and the others wait."""
        with self.place.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, deadline: float) -> None:
        """Make it whole or not at all."""
        for leftover in BUILD.glob(f"{self.name}-*"):  # of one that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-", dir=BUILD) as name:
            place, root = Path(name), Path(name) / "root"
            for folder in ("state", "cache", "log", "root"):
                (place / folder).mkdir()
            if self.release:
                (place / "status").touch()
            else:
                shutil.copy(_STATUS, place / "status")
            mirror, own_release = _mirror(deadline)
            source = _SOURCE.format(mirror=mirror, release=self.release or own_release, keyring=_KEYRING)
            (place / "debian.sources").write_text(source)
            # apt's own user, the sandbox's, could not enter a directory that is ours alone.
            (place / "apt.conf").write_text(_proxies(deadline) + _APT.format(place=place))
            run(deadline, place, "apt-get", "-q", "update", "--error-on=any")
            # On a copy of the system's list: what would have to be removed for it stays where it is.
            run(deadline, place, "apt-get", "-q", "-y", "--download-only", "install", *self.wanted)
            for package in sorted((place / "cache/archives").glob("*.deb")):
                run(deadline, place, "dpkg-deb", "--extract", str(package), str(root))
            self.trim(root)
            root.rename(self.place)


def _mirror(deadline: float) -> tuple[str, str]:
    """Return where this system gets its own packages, and the name of its release."""
    if not _KEYRING.exists() or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NotToBeHad("needs apt-get, dpkg-deb and Debian's keyring")
    here = platform.freedesktop_os_release()
    if here.get("ID") != "debian":
        raise NotToBeHad("this is no Debian, whose mirror could be asked")
    codename = here.get("VERSION_CODENAME", "stable")
    asked = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Component: main")
    for line in run(deadline, None, *asked).splitlines():
        mirror, release = line.split()
        if release in {codename, "stable", "oldstable"}:
            return mirror, codename
    raise NotToBeHad("apt's sources name no mirror of Debian")


def _proxies(deadline: float) -> str:
    """Return how this system's apt goes out, without anything else that it was told, such as what to run after."""
    said = run(deadline, None, "apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https")
    return "".join(f"{line}\n" for line in said.splitlines() if "proxy" in line.lower())


def run(deadline: float, place: Path | None, *argv: str) -> str:
    """Run one of the programs, and return what it says; raise NotToBeHad."""
    environment = {**os.environ, "LC_ALL": "C", **({"APT_CONFIG": str(place / "apt.conf")} if place else {})}
    try:
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment,
            timeout=max(1.0, deadline - time.monotonic()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"{argv[0]} took too long") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotToBeHad(f"{Path(argv[0]).name}: {said[0]}")
    return done.stdout
