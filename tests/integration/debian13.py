"""Debian 13's Dovecot, unpacked in a directory: its programs run here, and this system stays as it is.

`python -m tests.integration.debian13` fetches it beforehand, as `make test` does.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.integration.debian_packages import NotToBeHad, Packages, run

PROGRAMS = ("usr/sbin/dovecot", "usr/bin/doveadm", "usr/bin/doveconf")
FETCH_S, FETCH_BEFOREHAND_S = 100.0, 900.0
START_S, TRIED_LATELY_S = 20.0, 1800.0
_PROGRAM = """\
#!/bin/sh
# The program stays this process: signals reach it, and its files are where they are for all others.
exec unshare --mount sh -c 'mount --bind "$0" /usr && exec "$@"' {usr} /{name} "$@"
"""


def programs_of_debian13(directory: Path) -> Path:
    """Write the programs of Dovecot 2.4 into a directory and return it; skip where they cannot be had."""
    try:
        return write_programs(DOVECOT.unpacked(FETCH_S, tried_lately_s=TRIED_LATELY_S), directory)
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
    version = run(time.monotonic() + START_S, None, str(directory / "dovecot"), "--version")
    if not version.startswith("2.4."):
        raise NotToBeHad(f"it is Dovecot {version.strip()}")
    return directory


def _thin_out(root: Path) -> None:
    """Keep libraries and Dovecot: nothing of other packages is run, some of it with the rights of root."""
    kept = {Path(name) for name in PROGRAMS}
    kept |= {parent for name in kept for parent in name.parents}
    for path in (*root.glob("*"), *root.glob("usr/*"), *root.glob("usr/*bin/*")):
        name = path.relative_to(root)
        if name not in kept and not name.is_relative_to("usr/lib") and not name.is_relative_to("usr/lib64"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _trim(root: Path) -> None:
    if not Path("/lib").is_symlink():
        raise NotToBeHad("/lib is not a part of /usr here")
    _thin_out(root)
    write_programs(root, root.parent)


DOVECOT = Packages(name="debian13", wanted=("dovecot-core", "dovecot-pgsql"), release="trixie", trim=_trim)
PLACE = DOVECOT.place


def main() -> None:
    """Fetch it, or say why not: the tests will be skipped."""
    try:
        DOVECOT.unpacked(FETCH_BEFOREHAND_S)
    except (NotToBeHad, OSError) as error:
        print(f"no Dovecot 2.4 for the tests: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
