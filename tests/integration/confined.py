"""Plays systemd's part: `confined.py ROOT UNIT NAME=VALUE... -- [COMMAND...]` becomes a command under a unit's rules.

What of a unit is not done here is in NOT_TRIED, and docs/units.md says so.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import shlex
import shutil
import socket
import struct
import sys
from pathlib import Path

from opensend_milter.host.examining.units import Unit, read
from tests.integration.call_filter import filter_calls, known_groups

NOT_TRIED = {
    "MemoryMax": "a control group's",
    "DevicePolicy": "a control group's; PrivateDevices is applied",
    "IPAddressDeny": "a control group's; PrivateNetwork and RestrictAddressFamilies are applied",
    "RemoveIPC": "systemd's at the end of a service; PrivateIPC is applied",
    "KeyringMode": "systemd's own call; keyctl is denied by the filter",
}
APPLIED = {
    *("User", "Group", "SupplementaryGroups", "UMask", "ReadWritePaths", "NoExecPaths", "ExecPaths"),
    *("CapabilityBoundingSet", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset"),
    *("ProtectHostname", "ProtectClock", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs"),
    *("ProtectControlGroups", "PrivateTmp", "PrivateDevices", "PrivateUsers", "PrivateIPC", "PrivateMounts"),
    *("PrivateNetwork", "LockPersonality", "MemoryDenyWriteExecute", "RestrictNamespaces", "RestrictRealtime"),
    *("RestrictSUIDSGID", "RestrictAddressFamilies", "SystemCallArchitectures", "SystemCallFilter"),
    *("SystemCallErrorNumber", "LoadCredential", "Environment", "LimitNOFILE", "LimitCORE", "RuntimeDirectory"),
    *("StateDirectory", "StateDirectoryMode", "ExecStart"),
}
OF_A_RUNNING_SYSTEMD = {
    *("Type", "EnvironmentFile", "ExecStartPre", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus"),
    *("WatchdogSec", "TimeoutStopSec", "SuccessExitStatus", "KillMode", "OOMScoreAdjust"),
}
"""They say when, not under which restrictions."""

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_BIND, _MOVE, _REC, _PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_FIRST_PASSED = 3
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confine this process, then become the command."""
    end = sys.argv.index("--")
    root, name, *given = sys.argv[1:end]
    unit, command = read(name), sys.argv[end + 1 :] or shlex.split(read(name).last("ExecStart"))
    environment = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", **dict(one.split("=", 1) for one in given)}
    groups, account = known_groups(), _Account(root, unit)
    _take_namespaces(unit)
    _take_root(root)
    environment |= _make_directories(unit, account) | _load_credentials(name, unit, account)
    for one in unit.values("Environment"):
        variable, _, value = one.partition("=")
        environment[variable] = value.replace("%d", environment.get("CREDENTIALS_DIRECTORY", ""))
    _confine_files(unit)
    _limit(unit)
    if unit.last("PrivateUsers") == "yes":
        _take_users_away(account)
    _become(unit, account)
    environment |= _passed_socket(environment)
    filter_calls(unit, groups)
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is the point


class _Account:
    """Whom the unit runs as, as the copy's files say."""

    def __init__(self, root: str, unit: Unit) -> None:
        user = unit.last("User") or "root"
        passwd = dict(line.split(":")[::2][:2] for line in Path(root, "etc/passwd").read_text().splitlines())
        group = {one[0]: int(one[2]) for one in map(_fields, Path(root, "etc/group").read_text().splitlines())}
        self.name = user
        self.uid = int(passwd[user])
        self.gid = group[unit.last("Group") or user]
        self.groups = [group[one] for one in unit.words("SupplementaryGroups")]


def _fields(line: str) -> list[str]:
    return line.split(":")


def _call(done: int, what: str) -> None:
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _mount(source: str, place: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    # By the system call: the program itself can no longer be executed where it is needed last.
    done = _libc.mount(source.encode(), place.encode(), kind.encode(), flags, options.encode())
    _call(done, f"mount {source} at {place}")


def _set_attributes(place: str, *, on: int = 0, off: int = 0, recursive: bool = True) -> None:
    wanted = struct.pack("QQQQ", on, off, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _call(_libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, place.encode(), flags, wanted, len(wanted)), place)


def _take_namespaces(unit: Unit) -> None:
    flags = _CLONE_NEWNS
    for directive, flag in (
        ("PrivateNetwork", _CLONE_NEWNET), ("PrivateIPC", _CLONE_NEWIPC), ("ProtectHostname", _CLONE_NEWUTS),
    ):  # fmt: skip
        flags |= flag if unit.last(directive) == "yes" else 0
    _call(_libc.unshare(flags), "unshare")
    _mount("none", "/", flags=_REC | _PRIVATE)
    if flags & _CLONE_NEWNET:
        with socket.socket() as any_one:  # the loopback device, up, as systemd leaves it
            fcntl.ioctl(any_one, 0x8914, struct.pack("16sh22x", b"lo", 1))


def _take_root(root: str) -> None:
    """Make the copy the root; not by chroot, inside of which nobody may make a namespace of users."""
    _mount(root, root, flags=_BIND | _REC)
    os.chdir(root)
    _call(_libc.pivot_root(b".", b"."), "pivot_root")
    _call(_libc.umount2(b".", _DETACH), "umount")
    os.chdir("/")


def _make_directories(unit: Unit, account: _Account) -> dict[str, str]:
    made = {}
    for directive, parent in (("RuntimeDirectory", "/run"), ("StateDirectory", "/var/lib")):
        for word in unit.words(directive):
            place = Path(parent, word)
            place.mkdir(parents=True, exist_ok=True, mode=0o755)
            os.chown(place, account.uid, account.gid)
            made["RUNTIME_DIRECTORY" if parent == "/run" else "STATE_DIRECTORY"] = str(place)
    return made


def _load_credentials(name: str, unit: Unit, account: _Account) -> dict[str, str]:
    given = unit.values("LoadCredential")
    if not given:
        return {}
    place = Path("/run/credentials", name)
    place.mkdir(parents=True, exist_ok=True, mode=0o755)
    _mount("tmpfs", str(place), "tmpfs", options="mode=0500")
    os.chown(place, account.uid, account.gid)
    for one in given:
        credential, _, source = one.partition(":")
        shutil.copyfile(source, place / credential)
        (place / credential).chmod(0o400)
        os.chown(place / credential, account.uid, account.gid)
    return {"CREDENTIALS_DIRECTORY": str(place)}


def _confine_files(unit: Unit) -> None:
    """Give this process its own view of the files, from the whole to the exceptions."""
    writable = [path for path in map(_present, unit.words("ReadWritePaths")) if path]
    writable += [f"/run/{one}" for one in unit.words("RuntimeDirectory")]
    writable += [f"/var/lib/{one}" for one in unit.words("StateDirectory")]
    executable = [path for path in map(_present, unit.words("ExecPaths")) if path]
    for place in dict.fromkeys((*writable, *executable)):
        _mount(place, place, flags=_BIND | _REC)
    whole = _RDONLY if unit.last("ProtectSystem") == "strict" else 0
    whole |= _NOEXEC if unit.words("NoExecPaths") == ["/"] else 0
    _set_attributes("/", on=whole)
    for place in executable:
        _set_attributes(place, off=_NOEXEC)
    for place in writable:
        _set_attributes(place, off=_RDONLY)
    hidden = ["/home", "/root", "/run/user"] if unit.last("ProtectHome") == "yes" else []
    hidden += ["/usr/lib/modules"] if unit.last("ProtectKernelModules") == "yes" else []
    for place in filter(os.path.isdir, hidden):
        _mount("tmpfs", place, "tmpfs", _RDONLY, "mode=0000")
    for place in ("/tmp", "/var/tmp") if unit.last("PrivateTmp") == "yes" else ():
        _mount("tmpfs", place, "tmpfs", _NOSUID | _NODEV, "mode=1777")
    _confine_kernel_files(unit)


def _confine_kernel_files(unit: Unit) -> None:
    options = [f"hidepid={unit.last('ProtectProc')}"] if unit.last("ProtectProc") else []
    options += ["subset=pid"] if unit.last("ProcSubset") == "pid" else []
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, ",".join(options))
    if unit.last("ProtectKernelTunables") == "yes" and Path("/proc/sys").is_dir():
        _mount("/proc/sys", "/proc/sys", flags=_BIND)
        _set_attributes("/proc/sys", on=_RDONLY)
    if unit.last("PrivateDevices") == "yes":
        _mount("tmpfs", "/mnt", "tmpfs", _NOSUID | _NOEXEC, "mode=0755")
        for device in ("null", "zero", "full", "random", "urandom", "tty"):
            os.mknod(f"/mnt/{device}", 0o020666, Path("/dev", device).stat().st_rdev)
            Path("/mnt", device).chmod(0o666)
        Path("/mnt/shm").mkdir(mode=0o1777)
        _mount("/mnt", "/dev", flags=_MOVE)


def _present(path: str) -> str:
    """Resolve a path; as in systemd, `-` says that it may be missing."""
    place = Path(path.lstrip("-")).resolve()
    if not place.exists() and not path.startswith("-"):
        raise FileNotFoundError(path)
    return str(place) if place.exists() else ""


def _limit(unit: Unit) -> None:
    if files := unit.last("LimitNOFILE"):
        most = min(int(files), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if octets := unit.last("LimitCORE"):
        resource.setrlimit(resource.RLIMIT_CORE, (int(octets), int(octets)))
    os.umask(int(unit.last("UMask") or "0022", 8))


def _take_users_away(account: _Account) -> None:
    """Know root and oneself, nobody else; a child that stays outside writes the maps."""
    taken, done = os.pipe(), os.pipe()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        os.close(taken[1])
        if not os.read(taken[0], 1):  # the parent is gone
            os._exit(1)
        for name, own in (("uid_map", account.uid), ("gid_map", account.gid)):
            lines = "".join(f"{one} {one} 1\n" for one in sorted({0, own}))
            Path(f"/proc/{parent}/{name}").write_text(lines)
        os.write(done[1], b"x")
        os._exit(0)
    os.setgroups(account.groups)
    _call(_libc.unshare(_CLONE_NEWUSER), "unshare users")
    os.write(taken[1], b"x")
    os.read(done[0], 1)
    os.waitpid(child, 0)
    for one in (*taken, *done):
        os.close(one)


def _become(unit: Unit, account: _Account) -> None:
    kept = {one.removeprefix("CAP_").lower() for one in unit.words("CapabilityBoundingSet")}
    names = _capability_names()
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1 and names.get(number) not in kept:
            _call(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "capabilities")
    if unit.last("PrivateUsers") != "yes":
        os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if unit.last("NoNewPrivileges") == "yes":
        _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")


def _capability_names() -> dict[int, str]:
    words = (
        "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
        "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
        "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap"
    )
    return dict(enumerate(words.split()))


def _passed_socket(environment: dict[str, str]) -> dict[str, str]:
    """Put a socket that the caller left us where a program looks for it."""
    if "PASSED_FD" not in environment:
        return {}
    os.dup2(int(environment.pop("PASSED_FD")), _FIRST_PASSED, inheritable=True)
    return {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}


if __name__ == "__main__":
    main()
