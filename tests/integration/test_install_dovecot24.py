"""Installing on a host with Dovecot 2.4, as Debian 13 has it: one of our own, or a passdb of one that has users."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from opensend_milter.config import load
from opensend_milter.host.rendering.dovecot import DovecotSite, render_dovecot
from opensend_milter.servers.dovecot import Dovecot
from tests.integration.confined_host import host_with, settings_for
from tests.integration.copied_system import CHECKOUT, CopiedSystem
from tests.integration.debian13 import PLACE, programs_of_debian13
from tests.integration.overlaid_system import OverlaidSystem, overlaid_system, why_not
from tests.integration.private_postgres import Database
from tests.integration.test_install import LEFT_BY_THE_SYSTEM
from tests.integration.test_install_running import (
    OF_RUNNING,
    OWN_DOVECOT,
    OWN_POSTFIX,
    kept_running,
    make_key,
    ours,
    running_host,
    submit,
)
from tests.waiting import await_true, patience_s

EXISTING = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols =
log_path = /var/log/dovecot-old.log
!include conf.d/*.conf
"""
AUTH = """\
auth_mechanisms = plain login
auth_failure_delay = 0
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
userdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
service auth {
  unix_listener old-postfix {
    mode = 0666
  }
}
"""
USERS = """\
jane@old.example.org:{PLAIN}not a key::::::
apikey:{PLAIN}not a key::::::
apikey@old.example.org:{PLAIN}not a key either::::::
"""
LOGINS = [
    ("jane@old.example.org", "not a key"),
    ("Jane@old.example.org", "not a key"),
    ("jane@old.example.org", "wrong"),
    ("nobody@old.example.org", "not a key"),
    ("apikey@old.example.org", "not a key either"),
]
UPGRADED = {f"/usr/sbin/{name}" for name in ("dovecot", "doveadm", "doveconf")} | {"/usr/sbin"}
DOCTOR = (
    sys.executable, "-P", "-c",
    "import typer; from opensend_milter.cli.machine.doctor import doctor; a = typer.Typer(); a.command()(doctor); a()",
)  # fmt: skip
ABOUT = ("service=smtp", "rip=127.0.0.1")
AS_NOBODY = (
    'mount --bind "$0" /usr && exec /tmp/setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/doveconf -n'
)


def upgrade(system: CopiedSystem) -> None:
    """Put Dovecot 2.4 where the copy has its own."""
    programs_of_debian13(system.root / "usr/sbin")
    assert system.run("dovecot", "--version").stdout.startswith("2.4.")


def become_newer(system: CopiedSystem) -> None:
    """Put Dovecot 2.4 where the copy has its own, with users of its own."""
    upgrade(system)
    shutil.rmtree(system.root / "etc/dovecot/conf.d")
    system.write("/etc/dovecot/dovecot.conf", EXISTING)
    system.write("/etc/dovecot/conf.d/10-auth.conf", AUTH)
    system.write("/etc/dovecot/users", USERS)


def logins(system: CopiedSystem) -> list[tuple[int, str]]:
    """Return what the old users are told, the wrong ones too."""
    told = [system.run("doveadm", "auth", "test", *login, check=False) for login in LOGINS]
    return [(one.returncode, one.stdout) for one in told]


def settings(asked: str) -> list[str]:
    """Return what `doveconf -n` says, each line with the sections it stands in."""
    found, sections = list[str](), list[str]()
    for line in asked.splitlines():
        match line.split():
            case [*_, "{"]:
                sections.append(line.strip())
                found.append(" ".join(sections))
            case ["}"]:
                sections.pop()
            case _:
                found.append(" ".join([*sections, line.strip()]))
    return found


def as_nobody(system: CopiedSystem) -> str:
    """Return what `doveconf -n` tells a user without rights, such as a delivery agent is."""
    shutil.copy2("/usr/bin/setpriv", system.root / "tmp/setpriv")
    return system.run("unshare", "--mount", "sh", "-c", AS_NOBODY, str(PLACE / "usr")).stdout


def judged(system: CopiedSystem, *options: str) -> dict[str, tuple[str, str]]:
    """Return what `doctor` says of Dovecot."""
    only = ("--only=dovecot", "--only=auth", "--only=dovecot-auth")
    done = system.run(*DOCTOR, "--json", *only, *options, check=False)
    return {one["name"]: (one["result"], one["seen"]) for one in json.loads(done.stdout)["findings"]}


@contextmanager
def confined(system: OverlaidSystem, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start Dovecot under the rules of its unit, where alone /usr is Debian 13's."""
    script = 'mount --bind "$0" "$1/usr" && exec "$2" -m tests.integration.confined "$1" opensend-dovecot.service --'
    argv = ["unshare", "--mount", "sh", "-c", script, str(PLACE / "usr"), str(system.root), sys.executable]
    # What makes the filter is loaded late, when its library is not to be seen any more.
    environment = {**os.environ, "LD_PRELOAD": "libseccomp.so.2"}
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as running,
    ):
        try:
            yield running
        finally:
            running.terminate()


@pytest.mark.case(66)
@pytest.mark.case(68)
def test_a_dovecot_of_our_own(database: Database) -> None:
    """Installed when it was 2.3 still, and again after the upgrade, as docs/upgrading.md says."""
    with running_host(database) as (system, url):
        key, before = make_key(database), system.written()
        system.install("--apply", DATABASE_URL=url)
        upgrade(system)
        assert "file /etc/opensend-milter/dovecot/dovecot.conf" in system.install("--apply", DATABASE_URL=url).stderr
        assert "dovecot_config_version = 2.4" in system.read("/etc/opensend-milter/dovecot/dovecot.conf")
        with ours(system, OWN_DOVECOT, OWN_POSTFIX):
            assert submit(system, 587, key).startswith("250 2.0.0 Ok: queued as")
            found = judged(system)
            assert {name: one for name, one in found.items() if one[0] != "good"} == {}
            assert found["dovecot.version"][1].startswith("Dovecot 2.4.")
            maildir = system.root / "var/lib/opensend-milter/maildir/new"
            await_true(lambda: maildir.is_dir() and len(list(maildir.iterdir())) == 1, "the worker delivers it")
        system.install("--undo", "--force")
        left = {path for path in system.changes(before) if not f"{path}/".startswith(OF_RUNNING)}
        assert left - UPGRADED == LEFT_BY_THE_SYSTEM
        system.run("postfix", "stop")


@pytest.mark.case(66)
@pytest.mark.case(68)
def test_a_passdb_of_one_with_users_of_its_own(database: Database) -> None:
    options = ("--mode", "services", "--dovecot", "existing")
    with running_host(database) as (system, url), ExitStack() as running:
        become_newer(system)
        key = make_key(database)
        running.enter_context(kept_running(system, "old-dovecot", "dovecot", "-F"))
        await_true((system.root / "run/dovecot/auth-client").is_socket, "the old Dovecot starts")
        before_asked, before_told, before = (
            settings(system.run("doveconf", "-n").stdout),
            logins(system),
            system.written(),
        )
        assert [code for code, _ in before_told] == [0, 0, 77, 77, 0]

        system.install("--apply", *options, DATABASE_URL=url)
        now, for_others = settings(system.run("doveconf", "-n").stdout), settings(as_nobody(system))
        assert set(before_asked) < set(now)
        assert [one for one in now if re.fullmatch("passdb \\S+ {", one)] == [
            "passdb opensend {",
            "passdb passwd-file {",
        ]
        new = set(now) - set(before_asked)
        assert {" ".join(one.split()[:2]) for one in new} == {"passdb opensend", "service auth"}
        assert set(for_others) == {one for one in now if not one.startswith("passdb opensend")}, (
            "it is readable for all"
        )
        with ours(system, None, None):
            assert submit(system, 587, key).startswith("250 2.0.0 Ok: queued as")
            assert "535" in submit(system, 587, "os_wrong", check=False)
            assert logins(system) == before_told
            assert system.run("doveadm", "auth", "test", "apikey", "not a key", check=False).returncode != 0
            found = judged(system, "--dovecot-dir", "/etc/dovecot")
            assert {name for name, one in found.items() if one[0] != "good"} == {"dovecot.rendered"}
            assert found["dovecot.rendered"][0] == "skipped"
            assert found["dovecot-auth.answers"][0] == "good"
        system.install("--undo", "--force")
        assert {path for path in system.changes(before) if not f"{path}/".startswith(OF_RUNNING)} == LEFT_BY_THE_SYSTEM
        assert settings(system.run("doveconf", "-n").stdout) == before_asked
        assert logins(system) == before_told
        system.run("postfix", "stop")


@pytest.mark.case(68)
def test_it_answers_under_the_restrictions_of_its_unit(database: Database, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    programs_of_debian13(tmp_path)
    with overlaid_system() as system, host_with(system, database, settings_for(587)) as host, ExitStack() as undo:
        folder, log_path = system.path("/etc/opensend-milter"), host.logs / "dovecot"
        password_dir = {"OPENSEND_MILTER_DATABASE_PASSWORD_DIR": str(database.password_dir)}
        site = DovecotSite(
            config_dir=Path("/etc/opensend-milter/dovecot"),
            base_dir=Path("/run/opensend-dovecot"),
            state_dir=Path("/var/lib/opensend-milter/dovecot"),
            log_file=Path("/dev/stderr"),
            version="2.4",
        )
        rendered = render_dovecot(load(folder / "opensend-milter.yaml", password_dir), site)
        (folder / "dovecot/dovecot.conf").write_text(rendered["dovecot.conf"])
        running = undo.enter_context(confined(system, log_path))
        place = system.path("/run/opensend-dovecot/auth.sock")
        await_true(lambda: place.is_socket() or running.poll() is not None, "Dovecot's socket is there")
        assert running.poll() is None, log_path.read_text()
        ask = Dovecot(place, patience_s()).ask
        assert asyncio.run(ask(make_key(database), ABOUT)), log_path.read_text()
        assert asyncio.run(ask("os_wrong", ABOUT)) is None, log_path.read_text()
        log = log_path.read_text()
        assert "Dovecot v2.4." in log
        assert not re.search("Error|Fatal|Panic|Operation not permitted", log), log
