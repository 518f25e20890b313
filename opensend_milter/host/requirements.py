"""What our programs need of a machine: other programs, users, directories that they can enter, free ports."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from opensend_milter.core.errors import OpensendError, UsageError
from opensend_milter.host.rendering import templates

EX_UNAVAILABLE, EX_NOPERM = 69, 77
LOWEST_PORT, HIGHEST_PORT = 20_000, 29_999
_MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_KEPT = ("HOME", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TZ", "VIRTUAL_ENV", "SSL_CERT_FILE")
_GROUP_OR_OTHERS_WRITE = 0o022
_TRIES = 50
_LOOKED_AT_S = 1.0


class Lacking(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """The machine lacks something: the exit code says of which kind."""

    def __init__(self, detail: str, exit_code: int = EX_UNAVAILABLE) -> None:
        super().__init__(detail)
        self.exit_code = exit_code


def search_path() -> str:
    """Return PATH with the places where servers are kept."""
    given = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*given, *(place for place in _MORE_PATH if place not in given)])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of our children: no variable of the caller's may configure them."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    root = templates.checkout()
    if root:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), kept.get("PYTHONPATH"))))
    return {**kept, "PATH": search_path(), "LC_ALL": "C.UTF-8", **extra}


def require(*, queue: bool) -> None:
    """Raise Lacking unless all is there that a sandbox runs."""
    if os.geteuid() != 0:
        raise Lacking("the sandbox starts Postfix, which needs root: run it as root", EX_NOPERM)
    missing = list(_missing_programs()) + list(_missing_modules(queue=queue))
    if missing:
        raise Lacking("missing: " + "; ".join(missing))
    for user, package in (("postgres", "postgresql"), ("postfix", "postfix"), ("dovecot", "dovecot-core")):
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise Lacking(f"missing: the user {user}: install the package {package}") from None


def _missing_programs() -> Iterator[str]:
    for name, package in (("postfix", "postfix"), ("postconf", "postfix"), ("dovecot", "dovecot-core")):
        if not shutil.which(name, path=search_path()):
            yield f"{name}: install the package {package}"
    if not any(Path("/usr").glob("lib*/dovecot/modules/**/libdriver_pgsql.so")):
        yield "Dovecot's PostgreSQL driver: install the package dovecot-pgsql"
    if not postgres_programs():
        yield "initdb: install the package postgresql"


def _missing_modules(*, queue: bool) -> Iterator[str]:
    for module in ("aiosmtpd", *(["moto", "flask"] if queue else [])):
        if importlib.util.find_spec(module) is None:
            yield f"the Python package {module}: pip install 'opensend-milter[sandbox]'"


def postgres_programs(version: str | None = None) -> Path | None:
    """Return the directory of initdb and postgres: of a major version, else the newest."""
    places = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda place: float(place.parent.name) if place.parent.name.replace(".", "").isdigit() else 0.0,
    )
    if version:
        return next((place for place in places if place.parent.name == version), None)
    on_path = shutil.which("initdb", path=search_path())
    return places[-1] if places else Path(on_path).resolve().parent if on_path else None


def dovecot_version() -> str:
    """Return what `dovecot --version` says."""
    dovecot = shutil.which("dovecot", path=search_path()) or "dovecot"
    return subprocess.run([dovecot, "--version"], check=True, capture_output=True, text=True).stdout.split()[0]


def require_directory(directory: Path) -> None:
    """Raise UsageError unless the directory is ours alone and the servers' users can enter it."""
    state = directory.lstat()
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(f"{directory} is no directory")
    if state.st_uid != os.geteuid():
        raise UsageError(f"{directory} belongs to somebody else")
    if state.st_mode & _GROUP_OR_OTHERS_WRITE:
        raise UsageError(f"{directory} can be written to by others: chmod go-w {directory}")
    for user in ("postgres", "postfix", "dovecot"):
        for place in reversed((directory, *directory.parents)):
            if not _can_enter(place, user):
                raise UsageError(f"the user {user} cannot enter {place}: chmod o+x {place}, or choose another --dir")


def _can_enter(place: Path, user: str) -> bool:
    account, state = pwd.getpwnam(user), place.stat()
    if state.st_uid == account.pw_uid:
        return bool(state.st_mode & 0o100)
    if state.st_gid in os.getgrouplist(account.pw_name, account.pw_gid):
        return bool(state.st_mode & 0o010)
    return bool(state.st_mode & 0o001)


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """Find a free port of 127.0.0.1 for each name; all are held until the last is found."""
    with contextlib.ExitStack() as held:
        found = {}
        for name in names:
            for _ in range(_TRIES):
                endpoint = held.enter_context(socket.socket())
                port = random.randint(LOWEST_PORT, HIGHEST_PORT)
                with contextlib.suppress(OSError):
                    endpoint.bind(("127.0.0.1", port))
                    found[name] = port
                    break
            else:
                raise Lacking(f"no free port from {LOWEST_PORT} to {HIGHEST_PORT}")
        return found


@contextlib.contextmanager
def held(ports: Mapping[str, int]) -> Iterator[None]:
    """Keep ports that we had before from whoever looks for a free one; raise Lacking where one is another's now.

    Bound with SO_REUSEADDR and not listening, a socket does not stand in the way of the server whose port it is.
    """
    with contextlib.ExitStack() as endpoints:
        for name, port in ports.items():
            endpoint = endpoints.enter_context(socket.socket())
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                _bind(endpoint, port)
            except OSError as error:
                raise Lacking(f"port {port}, this sandbox's for {name}, is in use: {error.strerror}") from error
        yield


def _bind(endpoint: socket.socket, port: int) -> None:
    """Bind; for a moment the port may be in the hands of somebody who looks for a free one."""
    deadline = time.monotonic() + _LOOKED_AT_S
    while True:
        try:
            endpoint.bind(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
