"""The system call filter that systemd would make of a unit, made with libseccomp."""

from __future__ import annotations

import ctypes
import errno
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from opensend_milter.host.examining.units import Unit

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NE, _EQ, _MASKED_EQ = 1, 4, 7
_PROT_WRITE, _PROT_EXEC, _SHM_EXEC = 2, 4, 0o100000
_SET_IDS = (0o4000, 0o2000)
_NAMESPACES = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_FAMILIES = 46
_REALTIME = (1, 2, 6)
_IMPLIED = {"execve", "exit", "exit_group", "getrlimit", "rt_sigreturn", "sigreturn", "clock_nanosleep", "nanosleep"}
Groups = Mapping[str, Sequence[str]]


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@dataclass
class _Filter:
    default: int
    _lib: ctypes.CDLL = field(default_factory=lambda: ctypes.CDLL("libseccomp.so.2", use_errno=True))
    _context: ctypes.c_void_p = field(init=False)

    def __post_init__(self) -> None:
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(self.default))

    def add(self, action: int, name: str, *conditions: _Comparison) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # not of this architecture
            return
        given = (_Comparison * len(conditions))(*conditions)
        code = self._lib.seccomp_rule_add_array(self._context, action, number, len(conditions), given)
        if code not in (0, -errno.EACCES):  # the default's own action
            raise OSError(-code, name)

    def load(self) -> None:
        code = self._lib.seccomp_load(self._context)
        if code:
            raise OSError(-code, "seccomp_load")


def known_groups() -> Groups:
    """Return systemd's own groups of system calls."""
    done = subprocess.run(["systemd-analyze", "syscall-filter"], check=True, capture_output=True, text=True)
    groups: dict[str, list[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            groups[name] = []
        elif line.startswith(" ") and word and not word.startswith("#"):
            groups[name].append(word)
    return groups


def filter_calls(unit: Unit, groups: Groups) -> None:
    """Take from this process for ever what the unit denies."""
    denied = _ERRNO | getattr(errno, unit.last("SystemCallErrorNumber") or "EPERM")
    strict = _Filter(denied)
    for name in _allowed(unit, groups):
        strict.add(_ALLOW, name)
    careful = _Filter(_ALLOW)
    for name, code, conditions in _exceptions(unit, groups):
        careful.add(_ERRNO | code, name, *conditions)
    # The careful one first: the strict one does not allow a further filter.
    careful.load()
    strict.load()


def _allowed(unit: Unit, groups: Groups) -> set[str]:
    allowed = set(_members("@default", groups)) | _IMPLIED
    for value in unit.values("SystemCallFilter"):
        named = {name for word in value.removeprefix("~").split() for name in _members(word, groups)}
        allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed


def _members(word: str, groups: Groups) -> Iterator[str]:
    if not word.startswith("@"):
        yield word
        return
    for one in groups[word]:
        yield from _members(one, groups)


_Exception = tuple[str, int, tuple[_Comparison, ...]]


def _when(argument: int, mask: int) -> tuple[_Comparison, ...]:
    return (_Comparison(argument, _MASKED_EQ, mask, mask),)


_IDS = tuple(
    (name, errno.EPERM, _when(argument, bit))
    for bit in _SET_IDS
    for name, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mknod", 1))
)
_BY_DIRECTIVE: Mapping[str, Sequence[_Exception]] = {
    "MemoryDenyWriteExecute": (
        ("mmap", errno.EPERM, _when(2, _PROT_WRITE | _PROT_EXEC)),
        ("mprotect", errno.EPERM, _when(2, _PROT_EXEC)),
        ("pkey_mprotect", errno.EPERM, _when(2, _PROT_EXEC)),
        ("shmat", errno.EPERM, _when(2, _SHM_EXEC)),
    ),
    "RestrictNamespaces": (
        # Its flags are behind a pointer, where no filter can look: the C library then falls back to clone.
        ("clone3", errno.ENOSYS, ()),
        ("setns", errno.EPERM, ()),
        *((name, errno.EPERM, _when(0, flag)) for name in ("unshare", "clone") for flag in _NAMESPACES),
    ),
    "RestrictSUIDSGID": _IDS,
    "RestrictRealtime": tuple(
        ("sched_setscheduler", errno.EPERM, (_Comparison(1, _EQ, policy, 0),)) for policy in _REALTIME
    ),
    "LockPersonality": (("personality", errno.EPERM, (_Comparison(0, _NE, 0, 0),)),),
    "ProtectKernelLogs": (("syslog", errno.EPERM, ()),),
}
_GROUPS = {"ProtectClock": "@clock", "ProtectKernelModules": "@module"}


def _exceptions(unit: Unit, groups: Groups) -> Iterator[_Exception]:
    for directive, exceptions in _BY_DIRECTIVE.items():
        if unit.last(directive) == "yes":
            yield from exceptions
    for directive, group in _GROUPS.items():
        if unit.last(directive) == "yes":
            yield from ((name, errno.EPERM, ()) for name in _members(group, groups))
    if families := unit.words("RestrictAddressFamilies"):
        allowed = {int(getattr(socket, name)) for name in families}
        for number in sorted(set(range(_FAMILIES)) - allowed):
            yield "socket", errno.EAFNOSUPPORT, (_Comparison(0, _EQ, number, 0),)
