"""Debian 13's Dovecot, unpacked in a directory: its programs run here, and this system stays as it is.

`python -m tests.integration.debian13` fetches it beforehand, as `make test` does.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PLACE = CHECKOUT / "build" / "debian13"
"""Kept for the next run; `make clean` takes it away."""
PACKAGES = ("dovecot-core", "dovecot-pgsql")
PROGRAMS = ("usr/sbin/dovecot", "usr/bin/doveadm", "usr/bin/doveconf")
FETCH_S, FETCH_BEFOREHAND_S = 100.0, 900.0
START_S, TRIED_LATELY_S = 20.0, 1800.0
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASE = "trixie"
_SOURCE = "Types: deb\nURIs: {mirror}\nSuites: {release}\nComponents: main\nSigned-By: {keyring}\n"
_APT = """
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{place}/debian13.sources";
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
_PROGRAM = """\
#!/bin/sh
# The program stays this process: signals reach it, and its files are where they are for all others.
exec unshare --mount sh -c 'mount --bind "$0" /usr && exec "$@"' {usr} /{name} "$@"
"""


class NotToBeHad(Exception):  # noqa: N818  # it is no error of the tests
    """Why there is no Debian 13 here."""


def programs_of_debian13(directory: Path) -> Path:
    """Write the programs of Dovecot 2.4 into a directory and return it; skip where they cannot be had."""
    try:
        return write_programs(unpacked(FETCH_S, tried_lately_s=TRIED_LATELY_S), directory)
    except NotToBeHad as error:
        pytest.skip(f"Dovecot 2.4 from Debian 13's packages: {error}")


def write_programs(debian13: Path, directory: Path) -> Path:
    """Write them, for each of which only /usr is another; raise NotToBeHad where that does not work."""
    for name in PROGRAMS:
        path = directory / Path(name).name
        # In a copy of this system it may be one of its own files.
        path.unlink(missing_ok=True)
        path.write_text(_PROGRAM.format(usr=shlex.quote(str(debian13 / "usr")), name=name))
        path.chmod(0o755)
    version = _run(time.monotonic() + START_S, None, str(directory / "dovecot"), "--version")
    if not version.startswith("2.4."):
        raise NotToBeHad(f"it is Dovecot {version.strip()}")
    return directory


def unpacked(within_s: float, *, tried_lately_s: float = 0.0) -> Path:
    """Return where it is unpacked, fetched now if it has to be; raise NotToBeHad."""
    if os.geteuid() != 0:
        raise NotToBeHad("needs root")
    if not Path("/lib").is_symlink():
        raise NotToBeHad("/lib is not a part of /usr here")
    PLACE.parent.mkdir(exist_ok=True)
    with _alone():
        if not PLACE.is_dir():
            _fetch_once(within_s, PLACE.with_suffix(".failed"), tried_lately_s)
    return PLACE


def _fetch_once(within_s: float, failed: Path, tried_lately_s: float) -> None:
    """Fetch it, unless that was tried in vain lately: others would wait as long again."""
    if failed.exists() and time.time() - failed.stat().st_mtime < tried_lately_s:
        raise NotToBeHad(failed.read_text())
    try:
        _fetch(time.monotonic() + within_s)
    except NotToBeHad as error:
        failed.write_text(str(error))
        raise
    failed.unlink(missing_ok=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Let the first of several processes do it, and the others wait."""
    with PLACE.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(deadline: float) -> None:
    """Make it whole or not at all."""
    for leftover in PLACE.parent.glob("debian13-*"):  # of one that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="debian13-", dir=PLACE.parent) as name:
        place, root = Path(name), Path(name) / "root"
        for folder in ("state", "cache", "log", "root"):
            (place / folder).mkdir()
        # Nothing is installed: all that is needed is named, down to the C library.
        (place / "status").touch()
        source = _SOURCE.format(mirror=_mirror(deadline), release=_RELEASE, keyring=_KEYRING)
        (place / "debian13.sources").write_text(source)
        # apt's own user, the sandbox's, could not enter a directory that is ours alone.
        (place / "apt.conf").write_text(_proxies(deadline) + _APT.format(place=place))
        _run(deadline, place, "apt-get", "-q", "update", "--error-on=any")
        _run(deadline, place, "apt-get", "-q", "-y", "--download-only", "install", *PACKAGES)
        for package in sorted((place / "cache/archives").glob("*.deb")):
            _run(deadline, place, "dpkg-deb", "--extract", str(package), str(root))
        _thin_out(root)
        write_programs(root, place)
        root.rename(PLACE)


def _thin_out(root: Path) -> None:
    """Keep libraries and Dovecot: nothing of other packages is run, some of it with the rights of root."""
    kept = {Path(name) for name in PROGRAMS}
    kept |= {parent for name in kept for parent in name.parents}
    for path in (*root.glob("*"), *root.glob("usr/*"), *root.glob("usr/*bin/*")):
        name = path.relative_to(root)
        if name not in kept and not name.is_relative_to("usr/lib") and not name.is_relative_to("usr/lib64"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _mirror(deadline: float) -> str:
    """Return where this system gets its own packages."""
    if not _KEYRING.exists() or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NotToBeHad("needs apt-get, dpkg-deb and Debian's keyring")
    here = platform.freedesktop_os_release()
    if here.get("ID") != "debian":
        raise NotToBeHad("this is no Debian, whose mirror could be asked")
    asked = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Component: main")
    for line in _run(deadline, None, *asked).splitlines():
        mirror, release = line.split()
        if release in {here.get("VERSION_CODENAME"), "stable", "oldstable"}:
            return mirror
    raise NotToBeHad("apt's sources name no mirror of Debian")


def _proxies(deadline: float) -> str:
    """Return how this system's apt goes out, without anything else that it was told, such as what to run after."""
    said = _run(deadline, None, "apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https")
    return "".join(f"{line}\n" for line in said.splitlines() if "proxy" in line.lower())


def _run(deadline: float, place: Path | None, *argv: str) -> str:
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


def main() -> None:
    """Fetch it, or say why not: the tests will be skipped."""
    try:
        unpacked(FETCH_BEFOREHAND_S)
    except (NotToBeHad, OSError) as error:
        print(f"no Dovecot 2.4 for the tests: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
