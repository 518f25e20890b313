"""What is found on a host before anything is done, and why an installation could not be; nothing is changed here."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from opensend_milter.config import Config, Tls
from opensend_milter.core.errors import ConfigError
from opensend_milter.host import requirements
from opensend_milter.host.installing import extra_services, journal, shipped_units
from opensend_milter.host.installing.blueprint import (
    DOVECOT,
    EXISTING_DOVECOT,
    EXISTING_PASSDB,
    PASSWORDS,
    POSTFIX,
    Blueprint,
    Choice,
    Host,
)
from opensend_milter.host.installing.plan import Action, Fault, Plan, Root, program
from opensend_milter.host.rendering.acme import AcmeEntry, acme_entry
from opensend_milter.host.rendering.certificates import ACME_FOLDER, CertificatePair, find_certificate
from opensend_milter.host.rendering.dovecot import Version

PROGRAM_S = 30.0
_PACKAGES = {
    "postfix": "postfix", "postconf": "postfix", "dovecot": "dovecot-core", "doveconf": "dovecot-core",
    "systemd-sysusers": "systemd", "userdel": "passwd", "groupdel": "passwd",
}  # fmt: skip
_ACCOUNTS = {"postfix": "postfix", "dovecot": "dovecot-core", "dovenull": "dovecot-core"}
_BINARIES = ("usr/sbin", "usr/bin", "usr/local/sbin", "usr/local/bin", "sbin", "bin")
_EVERYWHERE = frozenset({"", "*", "0.0.0.0", "::", "[::]"})  # noqa: S104  # what a listener may be called
_PLACES = ("milter.socket", "milter.spool_dir", "auth.socket", "auth.dovecot_socket")
"""Where the units may write, and systemd listens."""


def draw_up(
    config: Config,
    written: bytes,
    choice: Choice,
    root: Root,
    *,
    database: Action | None = None,
    faults_of_database: Sequence[Fault] = (),
    edition: str = "",
) -> Plan:
    """Return the plan for this host; one with faults cannot be applied."""
    host, faults = survey(config, root)
    faults += faults_of_database
    blueprint = Blueprint(config, written, choice, host, database)
    try:
        faults += faults_of(blueprint)
        return blueprint.plan(tuple(faults), edition)
    except ConfigError as error:
        for line in str(error).splitlines():
            known = any(line in fault.what for fault in faults)
            faults += [] if known else [Fault(what=line, mend="`opensend-milter check-config` shows what is in force")]
        return Plan(root=root, steps=(), faults=tuple(faults))


def survey(config: Config, root: Root) -> tuple[Host, list[Fault]]:
    """Look at the host; where something is lacking say so, and go on with what is likely."""
    faults = list(_missing(root))
    certificate: CertificatePair | None = None
    entry: AcmeEntry | None = None
    hostname = config.smtp.hostname or _hostname(root)
    try:
        certificate, entry = _certificate(config.tls, hostname, root)
    except ConfigError as error:
        faults.append(Fault(what=str(error), mend="name a certificate and its key in the section tls"))
    return Host(
        root=root,
        hostname=hostname,
        dovecot_version=_dovecot_version(root),
        certificate=certificate,
        acme=entry,
        program=_program(root),
        has_systemd=root.is_here and Path("/run/systemd/system").is_dir(),
        packaged=shipped_units.is_packaged(root),
    ), faults


def faults_of(blueprint: Blueprint) -> list[Fault]:
    """Say why what is asked for could not be."""
    config, host, choice = blueprint.config, blueprint.host, blueprint.choice
    faults = list(_places(config))
    if config.auth.protocol != "dovecot":
        what = f"auth.protocol: {config.auth.protocol} is nothing that Postfix speaks, and Postfix is what is installed"
        faults.append(Fault(what=what, mend="take auth.protocol out; for another mail server see docs/mtas.md"))
    if str(host.program).startswith(("/home/", "/root/")):
        mend = "install the program below /opt, or its package"
        faults.append(Fault(what=f"{host.program}: units do not see /home and /root", mend=mend))
    if choice.mode == "services" and config.smtp.proxies:
        what = "smtp.proxies: with --mode services nothing could keep others than the balancers from our ports"
        faults.append(Fault(what=what, mend="use --mode instance, or leave smtp.proxies out"))
    if choice.dovecot == "existing":
        faults += _existing_dovecot(host.root)
    config_dir = host.root.at(extra_services.EXISTING)
    if choice.mode == "services" and not (config_dir / "main.cf").is_file():
        faults.append(Fault(what=f"{config_dir}/main.cf: is not there", mend="use --mode instance"))
        return faults
    known = journal.read(host.root.at(journal.STATE_DIR))
    if known:
        # The ports are our own by now.
        faults += _other_choice(choice, {record.step for record in known.open_records()})
    else:
        faults += _taken_in_master(config, config_dir)
        faults += _taken_now(config) if host.root.is_here else ()
    return faults


def _other_choice(choice: Choice, steps: Collection[str]) -> Iterator[Fault]:
    mend = "run `install --undo` first, or ask for what is installed"
    other_mode = (
        f"services in {extra_services.EXISTING}/master.cf" if choice.mode == "instance" else f"directory {POSTFIX}"
    )
    if other_mode in steps:
        yield Fault(what=f"--mode {choice.mode}: installed with the other mode", mend=mend)
    own, existing = f"file {DOVECOT}/dovecot.conf", f"file {EXISTING_PASSDB}"
    if (existing if choice.dovecot == "own" else own) in steps:
        yield Fault(what=f"--dovecot {choice.dovecot}: installed with the other", mend=mend)


def _missing(root: Root) -> Iterator[Fault]:
    for folder in ("etc", "var/lib"):
        if not (root.path / folder).is_dir():
            yield Fault(what=f"{root.path / folder}: is not there", mend="name the directory of a whole system")
            return
    for name, package in _PACKAGES.items():
        if not _find(root, name):
            yield Fault(what=f"the program {name} is missing", mend=f"apt-get install --no-remove {package}")
    if not any((root.path / "usr").glob("lib*/dovecot/modules/**/libdriver_pgsql.so")):
        yield Fault(what="Dovecot cannot ask PostgreSQL", mend="apt-get install --no-remove dovecot-pgsql")
    for user, package in _ACCOUNTS.items():
        if root.uid(user) is None:
            yield Fault(what=f"the user {user} is missing", mend=f"apt-get install --no-remove {package}")


def _find(root: Root, name: str) -> Path | None:
    if root.is_here:
        found = Path(program(name))
        return found if found.is_absolute() else None
    return next((path for place in _BINARIES if (path := root.path / place / name).exists()), None)


def _dovecot_version(root: Root) -> Version:
    if not _find(root, "dovecot"):
        return "2.3"
    inside = () if root.is_here else ("chroot", str(root.path))
    argv = [*inside, program("dovecot") if root.is_here else "/usr/sbin/dovecot", "--version"]
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=PROGRAM_S, env=requirements.environment({})
    )
    return "2.4" if done.stdout.startswith("2.4") else "2.3"


def _hostname(root: Root) -> str:
    if root.is_here:
        return socket.gethostname()
    path = root.at(Path("/etc/hostname"))
    return path.read_text().strip() if path.is_file() else "localhost"


def _certificate(tls: Tls, hostname: str, root: Root) -> tuple[CertificatePair | None, AcmeEntry | None]:
    """Find it below the root, and name it as that system will."""
    entry = acme_entry(root.at(tls.acme_json), hostname) if tls.acme_json else None
    if entry:
        places = (ACME_FOLDER / name for name in ("fullchain.pem", "privkey.pem"))
        certificate, key = places
        return CertificatePair(certificate=certificate, key=key, expires_at=entry.expires_at, names=entry.names), entry
    if tls.acme_json and not (tls.certificate or tls.folder):
        raise ConfigError(f"tls.acme_json: {tls.acme_json}: has no certificate for {hostname}")
    below = {
        name: root.at(path) if path else None
        for name, path in (("certificate", tls.certificate), ("key", tls.key), ("folder", tls.folder))
    }
    pair = find_certificate(replace(tls, acme_json=None, **below), hostname)
    if pair and not root.is_here:
        certificate, key = (Path("/") / path.relative_to(root.path) for path in (pair.certificate, pair.key))
        pair = replace(pair, certificate=certificate, key=key)
    return pair, None


def _program(root: Root) -> Path:
    """Return where this program is: as installed by its package, or in the environment that it runs from."""
    beside = Path(sys.executable).with_name("opensend-milter")
    is_ours = root.is_here and beside.is_file()
    return beside if is_ours and not shipped_units.is_packaged(root) else shipped_units.PROGRAM


def _places(config: Config) -> Iterator[Fault]:
    for name in _PLACES:
        section, key = name.split(".")
        given, shipped = (getattr(getattr(one, section), key) for one in (config, Config()))
        if given != shipped:
            yield Fault(what=f"{name}: expected {shipped}, got {given}", mend=f"leave {name} out: the units know it")
    if config.database.password_dir not in {None, PASSWORDS}:
        yield Fault(
            what=f"database.password_dir: expected {PASSWORDS}, got {config.database.password_dir}",
            mend="leave database.password_dir out: the units load the passwords from there",
        )


def _existing_dovecot(root: Root) -> Iterator[Fault]:
    path = root.at(EXISTING_DOVECOT / "dovecot.conf")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    if not any(line.split()[:2] == ["!include", "conf.d/*.conf"] for line in lines):
        yield Fault(
            what=f"{path}: does not include conf.d/*.conf", mend="use --dovecot own, or add `!include conf.d/*.conf`"
        )


def _listeners(config: Config) -> Iterator[tuple[str, str, int]]:
    for key in ("relay_port", "submission_port", "smtps_port"):
        port: int = getattr(config.smtp, key)
        if port:
            yield f"smtp.{key}", config.smtp.host, port


def _taken_in_master(config: Config, config_dir: Path) -> Iterator[Fault]:
    if not (config_dir / "main.cf").is_file():
        return
    for entry in extra_services.listening(config_dir):
        host, _, service = entry.rpartition(":")
        for key, our_host, port in _listeners(config):
            overlap = host == our_host or host in _EVERYWHERE or our_host in _EVERYWHERE
            if _number(service) == port and overlap:
                yield Fault(
                    what=f"{key}: {port} is the port of {entry} in {config_dir}/master.cf",
                    mend=f"set {key} to another port, or to 0 for none",
                )


def _number(service: str) -> int | None:
    if service.isdigit():
        return int(service)
    try:
        return socket.getservbyname(service, "tcp")
    except OSError:
        return None


def _taken_now(config: Config) -> Iterator[Fault]:
    for key, host, port in _listeners(config):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                yield Fault(
                    what=f"{key}: {host}:{port}: {error.strerror}",
                    mend=f"set {key} to another port, or to 0 for none" if taken else "mend smtp.host",
                )
