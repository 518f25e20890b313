"""Checks of the machine: room, descriptors, files that hold secrets, the way to the next hop, our HTTP port."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from opensend_milter.config import Config, Console, Http
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning

CONNECT_S = 10.0
LEAST_FREE_BYTES = 1_073_741_824
LEAST_FREE_SHARE = 0.05
LEAST_FREE_INODES_SHARE = 0.03
DESCRIPTORS_PER_SESSION = 2
DESCRIPTORS_OF_OURS = 100
_OTHERS = 0o007
_ANYBODY_RUNS = 0o111
_SMTP_PORT = 25
_OK = 200


def checks(config: Config, config_path: Path, *, queue_dir: Callable[[], Path], sessions: int) -> Iterator[Check]:
    """Return the checks of this machine; `sessions`: how many Postfix may have open at once."""
    places = {"queue": queue_dir, "spool": lambda: config.milter.spool_dir}
    if config.delivery.courier == "file":
        places["maildir"] = lambda: config.maildir.folder
    for name, place in places.items():
        yield Check(
            name=f"machine.{name}-space",
            why="Postfix takes no mail where its disk has no room for two of the largest messages; neither do we",
            look=partial(_room, place, config.size.max_message_bytes),
        )
    yield Check(
        name="machine.descriptors",
        why="each session needs file descriptors; without one more, the next message is put off",
        look=partial(_descriptors, config.milter.socket, sessions),
    )
    yield Check(
        name="machine.secrets",
        why="a file that holds a secret is for its owner alone",
        look=partial(_secrets, config, config_path),
        security=True,
    )
    yield Check(
        name="machine.hostname",
        why="other servers compare the name we give with DNS; a short name is refused by many",
        look=partial(_hostname, config.smtp.hostname),
    )
    if config.profile == "standalone":
        yield Check(
            name="courier.reachable",
            why="what the next hop does not take waits, and is given up in the end",
            look=partial(_courier, config),
        )
    yield Check(
        name="http.answers", why="the HTTP door takes no message while it is not ready", look=partial(_http, config)
    )


def _room(place: Callable[[], Path], message_bytes: int) -> Seen:
    return room(place(), message_bytes)


def room(place: Path, message_bytes: int) -> Seen:
    """Judge how much the disk of a directory can still take."""
    there = next((one for one in (place, *place.parents) if one.exists()), Path("/"))
    state = os.statvfs(there)
    free, whole = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    shown = f"{place}: {free / 2**30:.1f} GiB free"
    if free < 2 * message_bytes:
        return problem(shown, f"df -h {shlex.quote(str(there))}")
    if free < LEAST_FREE_BYTES or free < whole * LEAST_FREE_SHARE:
        return warning(shown, f"df -h {shlex.quote(str(there))}")
    if state.f_files and state.f_favail < state.f_files * LEAST_FREE_INODES_SHARE:
        return warning(f"{place}: {state.f_favail} files left", f"df -i {shlex.quote(str(there))}")
    return good(shown)


def _descriptors(milter_socket: Path, sessions: int) -> Seen:
    needed = sessions * DESCRIPTORS_PER_SESSION + DESCRIPTORS_OF_OURS
    try:
        pid = _listener(milter_socket)
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError as error:
        return skipped(f"the milter cannot be asked: {error.strerror or error}")
    found = re.search(r"Max open files\s+(\d+|unlimited)", limits)
    if not found or found[1] == "unlimited":
        return good(f"process {pid}: no limit")
    if int(found[1]) < needed:
        return warning(
            f"process {pid} may open {found[1]} files; {sessions} sessions need {needed}",
            "systemctl edit opensend-milter   # [Service] LimitNOFILE=65536",
        )
    return good(f"process {pid} may open {found[1]} files")


def _listener(path: Path) -> int:
    """Return the process that began to listen on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint:
        endpoint.settimeout(CONNECT_S)
        endpoint.connect(str(path))
        peer = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", peer)[0])


def _secrets(config: Config, config_path: Path) -> Seen:
    named = [config.relay.password_file, config.api.key_file]
    folder = config.database.password_dir
    files = [path for path in named if path] + (sorted(folder.iterdir()) if folder and folder.is_dir() else [])
    if "@" in config.database.url and re.search(r"://[^/@:]*:[^/@]+@", config.database.url) and config_path.exists():
        files += [config_path] if config.database.url in config_path.read_text(errors="replace") else []
    opened = [path for path in files if path.exists() and path.stat().st_mode & _OTHERS]
    if opened:
        names = " ".join(shlex.quote(str(path)) for path in opened)
        return problem(f"every user may read {', '.join(map(str, opened))}", f"chmod o= {names}")
    return good(f"{len(files)} file(s) that hold secrets are closed to others")


def _hostname(name: str) -> Seen:
    if not name:
        return warning(
            f"smtp.hostname is not set: {socket.getfqdn()} is used",
            "set smtp.hostname to the name that clients connect to",
        )
    if "." not in name:
        return warning(
            f"smtp.hostname is {name}, which is no full name", "set smtp.hostname to a name such as mail.example.org"
        )
    return good(name)


def _courier(config: Config) -> Seen:
    look = LOOKS.get(config.delivery.courier)
    return look(config) if look else good(f"courier {config.delivery.courier} needs nobody")


def _plunk(config: Config) -> Seen:
    return _hops(_hop(config.api.uri)) if config.api.uri else problem("api.uri is not set")


def _program(path: Path) -> Seen:
    # Whoever asks may be denied it where the worker is not.
    is_good = path.is_file() and bool(path.stat().st_mode & _ANYBODY_RUNS)
    return good(f"{path} can be run") if is_good else problem(f"{path} cannot be run", f"ls -l {path}")


def _folder(folder: Path) -> Seen:
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    is_good = os.access(there, os.W_OK)
    if not is_good and os.statvfs("/").f_flag & os.ST_RDONLY:
        return skipped(f"{there}: nothing can be written from here, so it cannot be told who else may")
    return good(str(folder)) if is_good else problem(f"{there} cannot be written to", f"ls -ld {there}")


LOOKS: Mapping[CourierName, Callable[[Config], Seen]] = {
    "smtp": lambda config: _hops({config.relay.host: config.relay.port} | _pairs(config.relay.fallbacks)),
    "ses": lambda config: _hops(_hop(config.aws.endpoint_url or f"https://email.{config.aws.region}.amazonaws.com")),
    "sendmail": lambda config: _program(config.sendmail.path),
    "plunk": _plunk,
    "file": lambda config: _folder(config.maildir.folder),
}
"""Those of the couriers that have a next hop."""


def _hop(url: str) -> dict[str, int]:
    parts = urlsplit(url)
    return {parts.hostname or "": parts.port or (443 if parts.scheme == "https" else 80)}


def _pairs(text: str) -> dict[str, int]:
    return {host: int(port) for host, _, port in (pair.rpartition(":") for pair in text.split())}


def _hops(hops: Mapping[str, int]) -> Seen:
    """Connect to each; one that cannot be reached while another can is a warning."""
    reached, missed = [], []
    for host, port in hops.items():
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as error:
            missed.append(f"{host}:{port} ({error.strerror or error})")
            blocked = port == _SMTP_PORT
        else:
            reached.append(f"{host}:{port}")
    if not missed:
        return good(", ".join(reached))
    text = f"cannot be reached: {', '.join(missed)}"
    if blocked:
        mend = "most clouds block outgoing port 25: set relay.port: 587 and relay.tls: starttls, or have it opened"
    else:
        mend = "nc -vz " + " ".join(missed[0].split(" ")[0].rsplit(":", 1))
    return warning(text, mend) if reached else problem(text, mend)


def _http(config: Config) -> Seen:
    settings = config.http
    start = "systemctl status opensend-http; journalctl -u opensend-http -n 20"
    where = str(settings.socket) if settings.socket else f"{settings.host}:{settings.port}"
    connection = http_connection(settings)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (ConnectionRefusedError, FileNotFoundError):
        return skipped(f"nobody listens at {where}: HTTP is not in use")
    except (OSError, http.client.HTTPException) as error:
        return problem(f"{where}: {error}", start)
    finally:
        connection.close()
    return good(f"{where} is ready") if status == _OK else problem(f"{where}/readyz says {status}", start)


def http_connection(settings: Http | Console) -> http.client.HTTPConnection:
    """Return a connection to our HTTP process, or the console, not yet opened."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # asked, not listened on
    if settings.socket:
        return _UnixConnection(settings.socket)
    if settings.tls:
        return http.client.HTTPSConnection(host, settings.port, timeout=CONNECT_S, context=_any_certificate())
    return http.client.HTTPConnection(host, settings.port, timeout=CONNECT_S)


def _any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
