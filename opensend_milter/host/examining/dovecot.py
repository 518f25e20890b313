"""Checks of our Dovecot: its version, what it was given, what it must not do."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.errors import OpensendError
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host import requirements
from opensend_milter.host.examining.postfix import numbers
from opensend_milter.host.rendering.dovecot import ROLE, DovecotSite, render_dovecot

READABLE = "dovecot.configuration"
OLDEST = (2, 3)
DOVECONF_S = 30.0
INSTANCE = "opensend"
"""What our templates call themselves."""
_RESTART = "systemctl restart opensend-dovecot"
_OTHERS = 0o077
_PASSWORD = re.compile(r"\bpassword\s*=\s*\S")


@dataclass(frozen=True, slots=True)
class Hole:
    """A known hole of some versions, and what an instance must do to be reached by it."""

    name: str
    since: tuple[int, ...]
    fixed: tuple[int, ...]
    reached_by: str
    """A setting of the instance; empty: parts of Dovecot that judge no keys."""


HOLES = (
    Hole("CVE-2022-30550", (2, 2), (2, 3, 20), ""),  # two passdbs with equal driver and args
    Hole("CVE-2024-23184", (2, 2), (2, 3, 21, 1), ""),  # many address headers in a mailbox
    Hole("CVE-2024-23185", (2, 2), (2, 3, 21, 1), ""),  # large headers in a mailbox
    Hole("CVE-2025-30189", (2, 4), (2, 4, 2), "auth_cache_size"),  # users mixed up in the cache
    Hole("CVE-2026-24031", (2, 4), (2, 4, 3), "%{user"),  # SQL in a name, where auth_username_chars is empty
)
"""As the Dovecot project's advisories tell; ours asks by the key's hash, never by a name, and caches nothing."""

MUST = (
    ("auth_verbose_passwords", "no", "keys would be written into the log"),
    ("auth_debug", "no", "much of each login would be written into the log"),
    ("auth_debug_passwords", "no", "keys would be written into the log"),
    ("auth_cache_size", "0", "a revoked key would stay good, and the cache answers while the database is out"),
)


class DovecotUnreadable(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """Dovecot cannot read its configuration."""


def checks(written: Sequence[Config], directory: Path) -> Iterator[Check]:
    """Return the checks of our instance, which was rendered from one of these configurations."""
    main = directory / "dovecot.conf"
    ask = cache(partial(_ask, main))
    yield Check(
        name=READABLE,
        why="what Dovecot cannot read it cannot run",
        look=lambda: good(f"{len(ask('auth_mechanisms').splitlines())} setting(s) asked of {main}"),
    )
    yield Check(
        name="dovecot.version",
        why="known holes of old versions stay open until Dovecot is upgraded",
        look=lambda: judged_version(requirements.dovecot_version(), _content(directory)),
        security=True,
    )
    for setting, wanted, why in MUST:
        yield Check(
            name=f"dovecot.{setting.removeprefix('auth_').replace('_', '-')}",
            why=why,
            look=partial(_is, ask, main, setting, wanted),
            security=True,
            needs=READABLE,
        )
    yield Check(
        name="dovecot.file-mode",
        why="its files hold a database password",
        look=partial(_closed, directory),
        security=True,
        needs=READABLE,
    )
    yield Check(
        name="dovecot.rendered",
        why="a change of the configuration, or of a password, holds only when Dovecot is rendered again",
        look=partial(_rendered, written, directory, ask),
        needs=READABLE,
    )


def _ask(main: Path, name: str) -> str:
    doveconf = shutil.which("doveconf", path=requirements.search_path())
    if not doveconf:
        raise DovecotUnreadable("doveconf is not installed: install the package dovecot-core")
    try:
        main.open().close()  # doveconf would tell in words only that it may not
    except FileNotFoundError as error:
        raise DovecotUnreadable(f"{main} does not exist") from error
    done = subprocess.run(
        [doveconf, "-c", str(main), "-h", name],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=DOVECONF_S,
    )
    if done.returncode:
        raise DovecotUnreadable((done.stderr.strip() or f"doveconf {name} failed").splitlines()[-1])
    return done.stdout.strip()


def _content(directory: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(directory.glob("*.conf")))


def judged_version(version: str, content: str) -> Seen:
    """Judge a version by the holes that reach an instance of this content."""
    release, upgrade = numbers(version), "apt-get install --only-upgrade dovecot-core dovecot-pgsql"
    if release[:2] < OLDEST:
        return problem(f"Dovecot {version}: 2.3 or 2.4 is needed", upgrade)
    opened = [hole for hole in HOLES if hole.since <= release < hole.fixed]
    reaching = [hole.name for hole in opened if hole.reached_by and _reaches(hole, content)]
    if reaching:
        return problem(f"Dovecot {version}: {', '.join(reaching)}", upgrade)
    others = f" ({', '.join(hole.name for hole in opened)}: of parts that are not in use here)" if opened else ""
    return good(f"Dovecot {version}: no known hole that reaches this instance{others}")


def _reaches(hole: Hole, content: str) -> bool:
    lines = (line.split("#")[0].strip() for line in content.splitlines())
    if hole.reached_by.startswith("%"):
        return any(hole.reached_by in line and "query" in line for line in lines)
    return any(line.startswith(hole.reached_by) and line.partition("=")[2].strip() != "0" for line in lines)


def _is(ask: Callable[[str], str], main: Path, setting: str, wanted: str) -> Seen:
    try:
        value = ask(setting)
    except DovecotUnreadable:
        return skipped(f"this Dovecot knows no {setting}")  # 2.4 has no auth_debug
    if value == wanted or (wanted == "0" and value.split()[:1] == ["0"]):
        return good(f"{setting} = {value}")
    mend = f"sed -i 's/^{setting} *=.*/{setting} = {wanted}/' {shlex.quote(str(main))} && {_RESTART}"
    return problem(f"{setting} = {value}", mend)


def _closed(directory: Path) -> Seen:
    opened = [path for path in sorted(directory.glob("*.conf")) if path.stat().st_mode & _OTHERS and _holds_one(path)]
    if opened:
        names = " ".join(shlex.quote(str(path)) for path in opened)
        return problem(f"others may read {', '.join(path.name for path in opened)}", f"chmod 600 {names}")
    return good("whatever holds a password is closed to others")


def _holds_one(path: Path) -> bool:
    lines = path.read_text(errors="replace").splitlines()
    return any(_PASSWORD.search(line) for line in lines if not line.lstrip().startswith("#"))


def _rendered(written: Sequence[Config], directory: Path, ask: Callable[[str], str]) -> Seen:
    if ask("instance_name") != INSTANCE:
        return skipped("an existing Dovecot is in use: `opensend-milter install --plan` compares its files")
    version = requirements.dovecot_version()
    log_file = ask("log_path")
    site = DovecotSite(
        config_dir=directory,
        base_dir=Path(ask("base_dir")),
        state_dir=Path(ask("state_dir")),
        log_file=None if log_file == "syslog" or not log_file else Path(log_file),
        version="2.3" if version.startswith("2.3") else "2.4",
        internal_user=ask("default_internal_user"),
        login_user=ask("default_login_user"),
    )
    for config in written:
        differing = [
            name
            for name, content in render_dovecot(_with_password(config, directory), site).items()
            if _entries(content) != _entries((directory / name).read_text(errors="replace"))
        ]
        if not differing:
            return good("as the configuration says")
    return warning(f"not as the configuration says: {', '.join(differing)}", "opensend-milter install --apply")


def _with_password(config: Config, directory: Path) -> Config:
    """Let it know the password where only units are told: in the place that they load it from."""
    beside = directory.parent / "passwords"
    if config.database.password_dir or not (beside / ROLE).is_file():
        return config
    return replace(config, database=replace(config.database, password_dir=beside))


def _entries(content: str) -> list[str]:
    lines = (line.split("#")[0] if line.lstrip().startswith("#") else line for line in content.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]
