"""What an installation consists of: the configuration and the host's facts in, a plan out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from psycopg import conninfo

from opensend_milter.config import DEFAULT_PATH, Config
from opensend_milter.host.installing import extra_services, shipped_units
from opensend_milter.host.installing.journal import STATE_DIR
from opensend_milter.host.installing.plan import (
    Action,
    Command,
    Directory,
    Fault,
    File,
    Plan,
    Root,
    Step,
    program,
)
from opensend_milter.host.rendering import dovecot as dovecots, templates
from opensend_milter.host.rendering.acme import AcmeEntry
from opensend_milter.host.rendering.certificates import CertificatePair
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix

ETC = DEFAULT_PATH.parent
PASSWORDS, POSTFIX, DOVECOT = ETC / "passwords", ETC / "postfix", ETC / "dovecot"
QUEUE_DIR = Path("/var/spool/postfix-opensend")
RUN_DIR = Path("/run/opensend-dovecot")
ROLES = ("opensend_dovecot_auth", "opensend_milter", "opensend_worker", "opensend_http")
EXISTING_DOVECOT = Path("/etc/dovecot")
EXISTING_PASSDB = EXISTING_DOVECOT / "conf.d" / "00-opensend-milter.conf"
"""Before all others."""
_TABLES = tuple(Path("/etc") / name for name in ("passwd", "group", "shadow", "gshadow", ".pwd.lock"))

Mode = Literal["instance", "services"]
Dovecot = Literal["own", "existing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the sysadmin asked for."""

    mode: Mode = "instance"
    dovecot: Dovecot = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What was found on the host."""

    root: Root
    hostname: str
    dovecot_version: dovecots.Version
    certificate: CertificatePair | None
    acme: AcmeEntry | None = None
    """Where the certificate is taken out of an acme.json."""
    program: Path = shipped_units.PROGRAM
    has_systemd: bool = False
    """It runs, and runs what is installed."""
    packaged: bool = False


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Makes the plan of an installation; `config` is as the units will read it, `written` its file."""

    config: Config
    written: bytes
    choice: Choice
    host: Host
    database: Action | None = None

    def plan(self, faults: tuple[Fault, ...] = (), edition: str = "") -> Plan:
        """Return all steps in order."""
        return Plan(
            root=self.host.root, steps=tuple(self._steps()), faults=faults, notes=tuple(self._notes()), edition=edition
        )

    def _steps(self) -> Iterator[Step]:
        yield from self._before_all()
        if not self.host.packaged:
            yield from self._accounts_and_directories_files()
        yield self._accounts()
        yield from self._directories()
        yield self._file(DEFAULT_PATH, self.written, "the configuration", 0o640, group="opensend")
        yield Directory(path=PASSWORDS, mode=0o700, why="passwords of the database roles")
        passwords = {role: self._password(role) for role in ROLES}
        for role, password in passwords.items():
            text = f"{password}\n".encode()
            yield File(
                path=PASSWORDS / role, content=text, mode=0o600, why=f"password of role {role}", secrets=(password,)
            )
        if self.database:
            yield self.database
        yield from self._dovecot(passwords[dovecots.ROLE])
        yield from self._certificate()
        yield from self._postfix()
        yield from self._units()
        yield from self._checks()
        yield from self._after_all()

    def _notes(self) -> Iterator[str]:
        if self.choice.mode == "services":
            yield (
                "--mode services is less isolated: our services share the queue, the queue manager and the restarts of "
                "the existing Postfix, and a later change of its main.cf can reach them"
            )
        if self.choice.dovecot == "existing":
            yield (
                "--dovecot existing is less isolated: its cache and its delays after failed logins hold for keys too, "
                "and its `auth_debug` would log their hashes"
            )
        if not self.host.root.is_here:
            yield f"nothing is started, and the database is left alone: {self.host.root.path} is not the running system"
        elif not self.host.has_systemd:
            yield "systemd does not run here: units are installed and not started"

    # ------------------------------------------------------------------ accounts, directories

    def _accounts_and_directories_files(self) -> Iterator[Step]:
        for folder, name in (("sysusers.d", shipped_units.SYSUSERS), ("tmpfiles.d", shipped_units.TMPFILES)):
            path = Path("/etc") / folder / "opensend-milter.conf"
            yield self._file(path, shipped_units.read(name).encode(), f"read by systemd-{folder.removesuffix('.d')}")

    def _accounts(self) -> Command:
        root, wanted = self.host.root, shipped_units.accounts()
        users = tuple(name for name in wanted["users"] if root.uid(name) is None)
        groups = tuple(name for name in wanted["groups"] if root.gid(name) is None)
        below = () if root.is_here else ("--prefix", str(root.path))
        return Command(
            name="accounts",
            why="each process has a user of its own: " + ", ".join(wanted["users"]),
            run=((program("systemd-sysusers"), f"--root={root.path}", "opensend-milter.conf"),),
            back=(
                *((program("userdel"), *below, name) for name in users),
                *((program("groupdel"), *below, name) for name in groups),
            ),
            touches=_TABLES,
            keeps_content=False,
            done=lambda: (
                all(root.uid(name) is not None for name in wanted["users"])
                and all(root.gid(name) is not None for name in wanted["groups"])
            ),
        )

    def _directories(self) -> Iterator[Step]:
        shipped = {one.path: one for one in shipped_units.directories()}
        yield from shipped.values()
        if self.choice.dovecot == "own":
            yield Directory(path=STATE_DIR / "dovecot", why="Dovecot's state", whole=True)
        elif RUN_DIR not in shipped:
            line = f"d {RUN_DIR} 0755 root root\n".encode()
            yield self._file(Path("/etc/tmpfiles.d/opensend-dovecot.conf"), line, "at boot, for the next")
        if RUN_DIR not in shipped:
            yield Directory(path=RUN_DIR, why="Dovecot's sockets", whole=True)

    # ------------------------------------------------------------------ Dovecot

    def _password(self, role: str) -> str:
        path = self.host.root.at(PASSWORDS / role)
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        return known or secrets.token_urlsafe(32)

    def _dovecot(self, password: str) -> Iterator[Step]:
        url = conninfo.make_conninfo(self.config.database.url, user=dovecots.ROLE, password=password)
        config = replace(self.config, database=replace(self.config.database, url=url, password_dir=None))
        yield Directory(path=DOVECOT, mode=0o700, why="Dovecot's configuration, with a password in it")
        if self.choice.dovecot == "existing":
            yield from self._existing_dovecot(config, password)
            return
        site = dovecots.DovecotSite(
            config_dir=DOVECOT,
            base_dir=RUN_DIR,
            state_dir=STATE_DIR / "dovecot",
            log_file=None,
            version=self.host.dovecot_version,
        )
        for name, content in dovecots.render_dovecot(config, site).items():
            yield File(
                path=DOVECOT / name, content=content.encode(), mode=0o600, why="Dovecot as the judge of keys",
                secrets=(password,),
            )  # fmt: skip

    def _existing_dovecot(self, config: Config, password: str) -> Iterator[Step]:
        parameters = dovecots.connection_parameters(config.database)
        values: dict[str, templates.Value] = {
            "AUTH_SOCKET": config.auth.dovecot_socket,
            "AUTH_GROUP": config.auth.socket_group,
        }
        why = "a passdb of the existing Dovecot"
        match self.host.dovecot_version:
            case "2.3":
                connect = " ".join(f"{name}={value}" for name, value in parameters.items())
                sql = _render("existing-sql-2.3.conf.in", {"CONNECT": connect}, "CONNECT")
                yield File(path=DOVECOT / dovecots.SQL_FILE, content=sql, mode=0o600, why=why, secrets=(password,))
                values["SQL_FILE"] = DOVECOT / dovecots.SQL_FILE
                yield File(path=EXISTING_PASSDB, content=_render("existing-2.3.conf.in", values), why=why)
            case "2.4":
                lines = "\n".join(f"      {name} = {value}" for name, value in parameters.items())
                passdb = _render("existing-passdb-2.4.conf.in", {"PARAMETERS": lines}, "PARAMETERS")
                path = DOVECOT / dovecots.PASSDB_FILE
                yield File(path=path, content=passdb, mode=0o600, why=why, secrets=(password,))
                values["PASSDB_FILE"] = path
                yield File(path=EXISTING_PASSDB, content=_render("existing-2.4.conf.in", values), why=why)

    # ------------------------------------------------------------------ Postfix

    def _certificate(self) -> Iterator[Step]:
        pair, entry = self.host.certificate, self.host.acme
        if pair and entry:
            why = "taken out of acme.json: Postfix reads PEM files only"
            yield Directory(path=pair.key.parent, mode=0o700, why=why, whole=True)
            yield File(path=pair.key, content=entry.key, mode=0o600, why=why, secrets=(entry.key.decode().strip(),))
            yield File(path=pair.certificate, content=entry.chain, mode=0o600, why=why)

    def _site(self) -> PostfixSite:
        return PostfixSite(
            config_dir=POSTFIX,
            queue_dir=QUEUE_DIR,
            data_dir=STATE_DIR / "postfix",
            log_file=None,
            certificate=self.host.certificate,
            hostname=self.host.hostname,
        )

    def _postfix(self) -> Iterator[Step]:
        if self.choice.mode == "services":
            config_dir = self.host.root.at(extra_services.EXISTING)
            found = extra_services.services(self.config, self._site(), config_dir)
            yield extra_services.step(found, self.host.root)
            return
        yield Directory(path=POSTFIX, why="the configuration of our own Postfix instance")
        for name, content in render_postfix(self.config, self._site()).items():
            yield self._file(POSTFIX / name, content.encode(), "our own Postfix instance")

    # ------------------------------------------------------------------ units

    def _left_out(self) -> set[str]:
        postfix = {"opensend-postfix.service"} if self.choice.mode == "services" else set()
        return postfix | ({"opensend-dovecot.service"} if self.choice.dovecot == "existing" else set())

    def _wanted(self) -> list[str]:
        """Return the units of this installation."""
        off = set() if self.config.console.is_on else set(shipped_units.CONSOLE)
        return [name for name in shipped_units.names() if name not in self._left_out() | off]

    def _units(self) -> Iterator[Step]:
        left_out = self._left_out()
        if self.host.packaged:
            yield from (shipped_units.mask(name) for name in sorted(left_out))
        else:
            yield from shipped_units.units(self._wanted(), self.host.program)
        yield from self._console_stopped()
        yield from shipped_units.of_former_settings(self.config, packaged=self.host.packaged)
        yield from shipped_units.drop_ins(self.config)
        if self.choice.mode == "services":
            yield shipped_units.reload_of_existing_postfix()
        yield shipped_units.enabling(packaged=self.host.packaged)

    def _console_stopped(self) -> Iterator[Command]:
        if self.host.has_systemd and not self.config.console.is_on:
            yield Command(
                name="stop the console",
                why="it is not configured",
                run=((program("systemctl"), "stop", *shipped_units.CONSOLE),),
                done=lambda: not self.host.root.at(shipped_units.CONSOLE_ON).exists(),
            )

    # ------------------------------------------------------------------ commands

    def _checks(self) -> Iterator[Command]:
        if not self.host.root.is_here:
            return
        if self.choice.mode == "instance":
            postfix = (program("postfix"), "-c", str(POSTFIX), "check")
            yield Command(name="check Postfix", why="says whether it would start, and makes its queue", run=(postfix,))
        conf = (EXISTING_DOVECOT if self.choice.dovecot == "existing" else DOVECOT) / "dovecot.conf"
        # Not to our output: it may show a password.
        dovecot = ("sh", "-c", '"$0" -c "$1" -n >/dev/null', program("doveconf"), str(conf))
        yield Command(name="check Dovecot", why="says whether it would start", run=(dovecot,))

    def _before_all(self) -> Iterator[Command]:
        """Return what undo runs last."""
        for command in self._reloads(listens=False):
            name = f"{command.name}, at undo"
            yield replace(command, name=name, run=(), back=command.run)
        if self.host.has_systemd:
            yield Command(name="daemon-reload, at undo", why="", back=((program("systemctl"), "daemon-reload"),))

    def _after_all(self) -> Iterator[Command]:
        yield from self._reloads(listens=True)
        if not self.host.has_systemd:
            return
        systemctl = program("systemctl")
        units = self._wanted()
        timers = [name for name in units if name.endswith(".timer")]
        yield Command(
            name="start",
            why="systemd reads the units and starts them",
            run=(
                (systemctl, "daemon-reload"),
                (systemctl, "restart", *filter(_stays, units)),
                (systemctl, "start", shipped_units.TARGET),
            ),
            back=(
                (systemctl, "stop", shipped_units.TARGET, *units),
                # systemd would remember of units that are gone when they ran last, and that they failed.
                (systemctl, "clean", "--what=state", *timers),
                (systemctl, "reset-failed", "opensend-*"),
            ),
        )

    def _reloads(self, *, listens: bool) -> Iterator[Command]:
        if not self.host.root.is_here:
            return
        if self.choice.mode == "services":
            script = '"$0" status 2>/dev/null || exit 0; exec "$0" reload'
            yield Command(name="reload Postfix", why="it reads its master.cf again, if it runs", run=(
                ("sh", "-c", script, program("postfix")),
            ))  # fmt: skip
        if self.choice.dovecot == "existing":
            awaited = (str(self.config.auth.dovecot_socket),) if listens else ()
            yield Command(name="reload Dovecot", why="it reads its conf.d again, if it runs", run=(
                ("sh", "-c", _RELOAD_DOVECOT, program("doveadm"), *awaited),
            ))  # fmt: skip

    @staticmethod
    def _file(path: Path, content: bytes, why: str, mode: int = 0o644, *, group: str = "root") -> File:
        return File(path=path, content=content, why=why, mode=mode, group=group)


_RELOAD_DOVECOT = """
"$0" reload 2>/dev/null || exit 0
[ -n "$1" ] || exit 0
for look in $(seq 50); do
    [ ! -S "$1" ] || exit 0
    sleep 0.2
done
echo "Dovecot runs and does not listen on $1: its log says why" >&2
exit 1
"""
"""One that does not heed it says so to nobody, and each login would be put off."""


def _stays(unit: str) -> bool:
    """Tell whether a unit is one that stays up, not one that a timer or a path starts."""
    return unit.endswith((".socket", ".timer", ".path")) or unit in {
        "opensend-milter.service",
        "opensend-auth-gate.service",
        "opensend-worker.service",
        "opensend-http.service",
        "opensend-console.service",
        "opensend-dovecot.service",
        "opensend-postfix.service",
    }


def _render(name: str, values: dict[str, templates.Value], *trusted: str) -> bytes:
    return templates.render(templates.read("dovecot", name), values, trusted=frozenset(trusted)).encode()
