"""Tries what a process of ours must not be able to do, so that a unit's restrictions are seen and not believed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

Service = Literal["serve", "auth-gate", "worker", "http", "console"]
UNITS: dict[Service, str] = {
    "serve": "opensend-milter.service",
    "auth-gate": "opensend-auth-gate.service",
    "worker": "opensend-worker.service",
    "http": "opensend-http.service",
    "console": "opensend-console.service",
}
Outcome = Literal["denied", "allowed", "not applicable"]

_DENIALS = frozenset(
    {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EAFNOSUPPORT, errno.ENOSYS, errno.ENETUNREACH}
)
"""What says no, or hides the thing. Any other error comes from the thing itself: it was reached."""
_CAPBSET_READ, _GET_NO_NEW_PRIVS = 23, 39
_PTRACE_ATTACH = 16
_CLONE_NEWUSER = 0x10000000
_MOST_CAPABILITIES = 64
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Something that must be denied."""

    what: str
    dare: Callable[[], None]
    """Raises OSError where it is denied; leaves nothing behind where it is not."""
    denied_to: frozenset[Service] = frozenset(UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of an attempt."""

    what: str
    outcome: Outcome
    detail: str


def running_as(cgroup: Path = Path("/proc/self/cgroup")) -> Service | None:
    """Return which of our units this process is in, None where it is in none."""
    try:
        group = cgroup.read_text(encoding="utf-8").strip().rpartition("/")[2]
    except OSError:
        return None
    return next((service for service, unit in UNITS.items() if unit == group), None)


def attempt_all(service: Service | None) -> list[Result]:
    """Try all of it; in none of our units nothing is promised, so nothing is tried."""
    return [_result(attempt, service) for attempt in _attempts()]


def _result(attempt: Attempt, service: Service | None) -> Result:
    if service is None:
        return Result(what=attempt.what, outcome="not applicable", detail="not in a unit of ours")
    if service not in attempt.denied_to:
        return Result(what=attempt.what, outcome="not applicable", detail=f"{service} needs it")
    try:
        attempt.dare()
    except OSError as error:
        outcome: Outcome = "denied" if error.errno in _DENIALS else "allowed"
        return Result(what=attempt.what, outcome=outcome, detail=error.strerror or str(error))
    return Result(what=attempt.what, outcome="allowed", detail="it worked")


def _attempts() -> Sequence[Attempt]:
    return (
        *(
            Attempt(what=f"write in {place}", dare=partial(_write, place))
            for place in (
                *("/etc", "/etc/opensend-milter", "/usr/bin", "/var/lib", "/var/log", "/run"),
                # Whoever can write there is told every key.
                "/var/spool/postfix-opensend/opensend-auth",
            )
        ),
        *(
            Attempt(what=f"read {place}", dare=partial(_list, place))
            for place in ("/home", "/root", "/etc/opensend-milter/passwords", "/etc/opensend-milter/dovecot")
        ),
        Attempt(what="read /etc/shadow", dare=partial(_open, "/etc/shadow", os.O_RDONLY)),
        Attempt(what="read the kernel's messages", dare=partial(_open, "/dev/kmsg", os.O_RDONLY)),
        Attempt(
            what="change a setting of the kernel", dare=partial(_open, "/proc/sys/kernel/core_pattern", os.O_WRONLY)
        ),
        Attempt(what="load a kernel module", dare=_load_module),
        Attempt(what="trace another process", dare=_trace),
        Attempt(what="see processes of others", dare=_see_others),
        Attempt(what="become root", dare=partial(_in_child, lambda: os.setuid(0))),
        Attempt(what="gain privileges by a program", dare=_may_gain),
        Attempt(what="keep a capability", dare=_keep_capability),
        Attempt(what="make a namespace of users", dare=partial(_in_child, _make_namespace)),
        Attempt(what="make a program that runs as its owner", dare=_make_setuid),
        Attempt(what="execute a program", dare=_execute),
        Attempt(what="write code into memory", dare=_write_code),
        Attempt(what="leave its memory in a file when it crashes", dare=_dump_core),
        Attempt(what="open a raw socket", dare=_raw_socket),
        Attempt(what="open a TCP connection", dare=_connect, denied_to=frozenset({"serve", "auth-gate"})),
    )


def _call(done: int) -> None:
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _in_child(dare: Callable[[], None]) -> None:
    """Do what would change this process in another one."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            dare()
        except OSError as error:
            code = error.errno or errno.EIO
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))


def _write(place: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".opensend-milter-selftest-", dir=place)
    os.close(descriptor)
    Path(name).unlink()


def _list(place: str) -> None:
    os.listdir(place)  # noqa: PTH208  # nothing is made of the names


def _open(place: str, flags: int) -> None:
    os.close(os.open(place, flags))


def _load_module() -> None:
    # Without a module: who may load one is told so before it is looked at.
    _call(_libc.init_module(None, 0, b""))


def _trace() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        _call(_libc.ptrace(_PTRACE_ATTACH, child, None, None))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _see_others() -> None:
    own = os.getuid()
    if not any(one.name.isdigit() and one.stat().st_uid != own for one in Path("/proc").iterdir()):
        raise PermissionError(errno.EPERM, "there are none to see")


def _may_gain() -> None:
    if _libc.prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
        raise PermissionError(errno.EPERM, "no new privileges")


def _keep_capability() -> None:
    if not any(_libc.prctl(_CAPBSET_READ, number, 0, 0, 0) == 1 for number in range(_MOST_CAPABILITIES)):
        raise PermissionError(errno.EPERM, "the bounding set is empty")


def _make_namespace() -> None:
    _call(_libc.unshare(_CLONE_NEWUSER))


def _make_setuid() -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0o4755)


def _execute() -> None:
    subprocess.run(["/usr/bin/id"], check=False, capture_output=True)


def _write_code() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _dump_core() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        raise PermissionError(errno.EPERM, "no core file")


def _raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def _connect() -> None:
    socket.create_connection(("127.0.0.1", 9), timeout=1).close()
