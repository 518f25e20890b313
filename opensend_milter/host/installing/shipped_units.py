"""The files in systemd/: units, accounts and directories, as shipped and as this host needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from psycopg import conninfo

from opensend_milter.config import Config, Console, Http, Tls
from opensend_milter.host.installing.plan import Directory, File, Gone, Root, SymbolicLink
from opensend_milter.host.rendering import templates

UNIT_DIR = Path("/etc/systemd/system")
PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
PROGRAM = Path("/usr/bin/opensend-milter")
TARGET = "opensend-milter.target"
CONSOLE = ("opensend-console.socket", "opensend-console.service", "opensend-doctor.timer")
"""Wanted where the console is on."""
CONSOLE_ON = UNIT_DIR / f"{TARGET}.d" / "console.conf"
CONSOLE_LISTENS = UNIT_DIR / "opensend-console.socket.d" / "listen.conf"
CONSOLE_ACTS = UNIT_DIR / "opensend-console.service.d" / "actions.conf"
"""Drop-ins: while it is on; while it listens elsewhere; while it may act."""
SYSUSERS, TMPFILES = "opensend-milter.sysusers.conf", "opensend-milter.tmpfiles.conf"
_EXECUTABLE_BY_DEFAULT = "-/opt/opensend-milter"
_UNITS = (".service", ".socket", ".target", ".path", ".timer")


def folder() -> Path:
    """Return where they are: in the checkout, or as installed in the package."""
    return (templates.checkout() or Path(templates.__file__).parents[2] / "share") / "systemd"


def read(name: str) -> str:
    """Return one of them."""
    return (folder() / name).read_text(encoding="utf-8")


def names() -> list[str]:
    """List the units."""
    return sorted(path.name for path in folder().iterdir() if path.suffix in _UNITS)


def is_packaged(root: Root) -> bool:
    """Tell whether a package has put the units there."""
    return any(root.at(place / TARGET).is_file() for place in PACKAGED)


def accounts() -> Mapping[str, tuple[str, ...]]:
    """Return the names of our users and groups, as sysusers.d says."""
    lines = [line.split() for line in read(SYSUSERS).splitlines() if line[:2] in {"u ", "g "}]
    return {
        "users": tuple(line[1] for line in lines if line[0] == "u"),
        "groups": tuple(line[1] for line in lines if line[0] == "g"),
    }


def directories() -> Iterator[Directory]:
    """Return the directories that tmpfiles.d makes at each boot."""
    for line in read(TMPFILES).splitlines():
        if line.startswith("d "):
            _, path, mode, owner, group = line.split()[:5]
            yield Directory(
                path=Path(path), mode=int(mode, 8), owner=owner, group=group, why="made at each boot by tmpfiles.d",
                whole=not path.startswith("/etc/"),
            )  # fmt: skip


def units(chosen: list[str], program: Path) -> Iterator[File]:
    """Return the units as files, with the program where it is."""
    for name in chosen:
        text = read(name)
        if program != PROGRAM:
            homes = {sys.prefix, sys.base_prefix} - {"/usr"}
            executable = " ".join((_EXECUTABLE_BY_DEFAULT, *(f"-{home}" for home in sorted(homes))))
            text = text.replace(f"={PROGRAM} ", f"={program} ").replace(_EXECUTABLE_BY_DEFAULT, executable)
        yield File(path=UNIT_DIR / name, content=text.encode(), why="systemd's unit")


def drop_ins(config: Config) -> Iterator[File]:
    """Return what the units must say otherwise, because the configuration does."""
    if _is_tcp(config.database.url):
        text = read("opensend-milter.service.d/tcp.conf.example")
        yield _drop_in("opensend-milter.service", "tcp.conf", text, "the database is reached over TCP")
    yield from _listening("http", config.http, "127.0.0.1:8025")
    if config.console.is_on:
        yield from _listening("console", config.console, "127.0.0.1:8026")
        text = f"[Unit]\nWants={' '.join(CONSOLE)}\n"
        yield File(path=CONSOLE_ON, content=text.encode(), why="the console is configured")
        if config.console.actions:
            acts = read("opensend-console.service.d/actions.conf.example")
            yield File(path=CONSOLE_ACTS, content=acts.encode(), why="the console may act")
    if config.smtp.proxies:
        yield for_balancers_only(config.smtp.proxies)
    certificate = certificate_file(config.tls)
    if certificate:
        text = f"[Path]\nPathChanged=\nPathChanged={certificate}\n"
        yield _drop_in("opensend-certificate.path", "place.conf", text, "reloads when this certificate changes")


def of_former_settings(config: Config, *, packaged: bool) -> Iterator[Gone]:
    """Return what the console had before it was switched off, or was given another place to listen at."""
    units = () if packaged or config.console.is_on else CONSOLE
    wanted = {file.path for file in drop_ins(config)}
    for path in (CONSOLE_ON, CONSOLE_LISTENS, CONSOLE_ACTS, *(UNIT_DIR / name for name in units)):
        if path not in wanted:
            yield Gone(path=path, why="the console is configured otherwise, or not at all")


def _listening(name: str, door: Http | Console, usual: str) -> Iterator[File]:
    listen = str(door.socket or _address(door.host, door.port))
    if listen != usual:
        owner = f"SocketGroup={door.socket_group}\nSocketMode=0660\n" if door.socket else ""
        text = f"[Socket]\nListenStream=\nListenStream={listen}\n{owner}"
        yield _drop_in(f"opensend-{name}.socket", "listen.conf", text, f"{name} listens elsewhere")


def for_balancers_only(proxies: str) -> File:
    """Return what keeps everybody else from our Postfix."""
    text = f"[Service]\nIPAddressDeny=any\nIPAddressAllow=localhost {proxies}\n"
    why = "the balancers' word is believed: nobody else gets in"
    return _drop_in("opensend-postfix.service", "proxies.conf", text, why)


def reload_of_existing_postfix() -> File:
    """Return what shows another certificate where no Postfix of our own does."""
    text = read("opensend-certificate.service")
    (ours,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    theirs = ours.replace("opensend-postfix.service", "postfix.service")
    return _drop_in(
        "opensend-certificate.service", "postfix.conf", f"[Service]\nExecStart=\n{theirs}\n", "reloads Postfix"
    )


def enabling(*, packaged: bool) -> SymbolicLink:
    """Return what starts all of it at boot."""
    path = UNIT_DIR / "multi-user.target.wants" / TARGET
    return SymbolicLink(path=path, target=str((PACKAGED[0] if packaged else UNIT_DIR) / TARGET), why="starts at boot")


def mask(name: str) -> SymbolicLink:
    """Return what keeps a packaged unit from being started."""
    return SymbolicLink(path=UNIT_DIR / name, target="/dev/null", why="not of this mode")


def certificate_file(tls: Tls) -> Path | None:
    """Return the file that changes when the certificate does."""
    return tls.certificate or (tls.folder / "fullchain.pem" if tls.folder else tls.acme_json)


def _drop_in(unit: str, name: str, text: str, why: str) -> File:
    return File(path=UNIT_DIR / f"{unit}.d" / name, content=text.encode(), why=why)


def _is_tcp(url: str) -> bool:
    host = str(conninfo.conninfo_to_dict(url).get("host") or "")
    return bool(host) and not host.startswith("/")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
