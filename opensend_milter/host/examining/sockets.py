"""Checks of the unix sockets between Postfix, the milter, the gate and Dovecot."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host.rendering.dovecot import greeting

ANSWER_S = 5.0
_GROUP_MAY = 0o060
_OTHERS_MAY = 0o006
_GROUP_OR_OTHERS_WRITE = 0o022
_NEGOTIATE = struct.pack("!IcIII", 13, b"O", 6, 0x1FF, 0x1FFFFF)
"""SMFIC_OPTNEG of milter protocol 6."""
_CLEARED_AT_BOOT = (Path("/run"), Path("/var/run"))
_TMPFILES = tuple(map(Path, ("/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A socket, who listens there, and how it is asked."""

    part: str
    path: Path
    group: str
    unit: str
    greets: Callable[[socket.socket], str]
    """Returns what is wrong with the answer, or nothing."""
    is_made_there: bool = False
    """By the process itself, so its account may write there; else root makes it."""


def checks(config: Config, tmpfiles: tuple[Path, ...] = _TMPFILES) -> Iterator[Check]:
    """Return four checks for each socket: is it there, is it ours, does it answer, will it be there after a reboot."""
    for place in _places(config):
        there = f"{place.part}.socket"
        yield Check(
            name=there,
            why="Postfix must be able to open the socket: path, directory, group and mode",
            look=partial(_is_there, place),
        )
        yield Check(
            name=f"{place.part}.rights",
            why="whoever can put a socket of his own in this place is told each key, or answers for us",
            look=partial(_is_kept, place),
            security=True,
            needs=there,
        )
        yield Check(
            name=f"{place.part}.answers",
            why=f"as long as {place.unit} does not answer, every message or login is put off",
            look=partial(_answers, place),
            needs=there,
        )
        yield Check(
            name=f"{place.part}.directory",
            why="a directory that a reboot clears away must be made again before the daemon starts",
            look=partial(_comes_back, place, tmpfiles),
        )


def _places(config: Config) -> Iterator[Place]:
    milter, auth = config.milter, config.auth
    yield Place(
        part="milter",
        path=milter.socket,
        group=milter.socket_group,
        unit="opensend-milter",
        greets=_negotiates,
        is_made_there=True,
    )
    yield Place(
        part="auth",
        path=auth.socket,
        group=auth.socket_group,
        unit="opensend-auth-gate",
        greets=_greets_as_dovecot if auth.protocol == "dovecot" else _says_no,
    )
    yield Place(
        part="dovecot-auth",
        path=auth.dovecot_socket,
        group=auth.socket_group,
        unit="opensend-dovecot",
        greets=_greets_as_dovecot,
    )


def _is_there(place: Place) -> Seen:
    return next(_faults(place), good(f"{place.path}, group {place.group}"))


def _faults(place: Place) -> Iterator[Seen]:
    start = f"systemctl restart {place.unit}"
    path, directory = shlex.quote(str(place.path)), place.path.parent
    if not directory.is_dir():
        made = f"systemd-tmpfiles --create opensend-milter.conf && {start}"
        yield problem(f"the directory {directory} does not exist", made)
        return
    try:
        state = place.path.stat()
        group = grp.getgrnam(place.group)
    except FileNotFoundError:
        yield problem(f"{place.path} does not exist", start)
        return
    except KeyError:
        yield problem(f"there is no group {place.group}", f"groupadd --system {shlex.quote(place.group)}")
        return
    if not stat.S_ISSOCK(state.st_mode):
        yield problem(f"{place.path} is no socket", f"rm {path} && {start}")
    mode = f"{stat.S_IMODE(state.st_mode):04o}"
    if state.st_mode & _OTHERS_MAY:
        yield problem(f"{place.path} is open to every user of this host ({mode})", f"chmod 0660 {path}")
    if state.st_gid != group.gr_gid:
        mend = f"chgrp {shlex.quote(place.group)} {path}   # for ever: {start}"
        yield problem(f"{place.path} belongs to group {_group_name(state.st_gid)}, not {place.group}", mend)
    if state.st_mode & _GROUP_MAY != _GROUP_MAY:
        yield problem(f"{place.path} has mode {mode}", f"chmod 0660 {path}")
    for closed in (one for one in (directory, *directory.parents) if not _may_enter(one, group)):
        mend = f"chgrp {place.group} {closed} && chmod g+x {closed}"
        yield problem(f"group {place.group} cannot enter {closed}", mend)


def _may_enter(directory: Path, group: grp.struct_group) -> bool:
    state = directory.stat()
    return bool(state.st_mode & 0o001 or (state.st_gid == group.gr_gid and state.st_mode & 0o010))


def _is_kept(place: Place) -> Seen:
    """Judge who can replace it: whoever may write in its directory, or in one above."""
    own = place.path.parent
    for directory in (own, *own.parents):
        state, quoted = directory.stat(), shlex.quote(str(directory))
        # Where the sticky bit is, each may replace his own only.
        if state.st_mode & _GROUP_OR_OTHERS_WRITE and not state.st_mode & stat.S_ISVTX:
            mode = f"{stat.S_IMODE(state.st_mode):04o}"
            return problem(f"others than its owner may write in {directory} ({mode})", f"chmod go-w {quoted}")
        if state.st_uid not in {0, os.geteuid()} and not (place.is_made_there and directory == own):
            return problem(f"{directory} belongs to {_user_name(state.st_uid)}, not to root", f"chown root {quoted}")
    return good(f"nobody else may write in {own}")


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _answers(place: Place) -> Seen:
    restart = f"systemctl restart {place.unit}; journalctl -u {place.unit} -n 20"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint:
            endpoint.settimeout(ANSWER_S)
            endpoint.connect(str(place.path))
            wrong = place.greets(endpoint)
    except PermissionError:
        return skipped(f"{place.path} may not be opened: run it as root")
    except TimeoutError:
        return problem(f"{place.path}: no answer within {ANSWER_S:g} s", restart)
    except OSError as error:
        return problem(f"{place.path}: {error.strerror or error}", restart)
    return problem(f"{place.path}: {wrong}", restart) if wrong else good(f"{place.path} answers")


def _negotiates(endpoint: socket.socket) -> str:
    endpoint.sendall(_NEGOTIATE)
    answer = endpoint.recv(64)
    return "" if answer[4:5] == b"O" else "what answers there is no milter"


def _greets_as_dovecot(endpoint: socket.socket) -> str:
    said = greeting(endpoint)
    if not said:
        return "closed before its greeting ended"
    return "" if b"\nMECH\tPLAIN" in b"\n" + said else "offers no PLAIN"


def _says_no(endpoint: socket.socket) -> str:
    endpoint.sendall(bytes(8))  # saslauthd's question, of four words that are empty
    said = endpoint.recv(4096)
    return "" if said == b"\0\2NO" else "does not answer as saslauthd"


def _comes_back(place: Place, tmpfiles: tuple[Path, ...]) -> Seen:
    directory = place.path.parent
    if not any(directory.is_relative_to(root) for root in _CLEARED_AT_BOOT):
        return good(f"{directory} outlives a reboot")
    named = {
        line.split()[1]
        for folder in tmpfiles
        for path in folder.glob("*.conf")
        for line in path.read_text(errors="replace").splitlines()
        if re.match(r"[dDe][!+-]?\s+\S", line)
    }
    if any(Path(one) in (directory, *directory.parents) and Path(one) not in _CLEARED_AT_BOOT for one in named):
        return good(f"{directory} is made at boot")
    unit = Path("/etc/systemd/system") / f"{place.unit}.service"
    packaged = Path("/usr/lib/systemd/system") / f"{place.unit}.service"
    for path in (unit, packaged):
        if path.is_file() and f"RuntimeDirectory={directory.name}" in path.read_text(errors="replace"):
            return good(f"{directory} is made by {path.name}")
    line = f"d {directory} 2750 root {place.group} -"
    return warning(
        f"{directory} is cleared away at boot, and no tmpfiles.d file makes it",
        f"echo {shlex.quote(line)} >> /etc/tmpfiles.d/opensend-milter.conf",
    )
