"""Units under a real systemd: it starts them, watches over them, starts them again, and forgets them at undo."""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from opensend_milter.adapters.schema.roles import LOGIN_ROLES
from opensend_milter.config import Config
from opensend_milter.host.installing import shipped_units
from opensend_milter.host.rendering.certificates import make_certificate
from tests.integration.copied_system import State
from tests.integration.private_postgres import PASSWORD, SUPERUSER, Cluster, Database
from tests.integration.systemd_host import DATABASE_DIR, HOME, PROGRAM, SystemdHost, booted
from tests.integration.test_install import CONFIG_PATH, LEFT_BY_THE_SYSTEM, furnish
from tests.integration.test_install_running import OF_RUNNING, make_key
from tests.waiting import await_true, patience_s, scaled_s

# Together, from the beginning: so one process of the tests boots it once.
pytestmark = pytest.mark.long
OURS = {f"opensend-{name}.service" for name in ("milter", "auth-gate", "worker", "http", "dovecot", "postfix")}
STAY = {
    *OURS, "opensend-auth-gate.socket", "opensend-http.socket", "opensend-milter.target", "opensend-certificate.path",
    "opensend-prune.timer", "opensend-domains.timer",
}  # fmt: skip
SEND = """
import http.client, json, smtplib, ssl, sys, time
key, subject, patience_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
def smtp():
    with smtplib.SMTP("127.0.0.1", 587, "client.example", timeout=patience_s / 3) as client:
        context = ssl.create_default_context(cafile="/etc/ssl/mail/ca.pem")
        context.check_hostname = False
        client.starttls(context=context)
        client.login("apikey", key)
        text = f"From: app@sender.example\\nTo: b@example.net\\nSubject: {subject} by SMTP\\n\\nHello.\\n"
        client.sendmail("app@sender.example", ["b@example.net"], text)
def http_():
    client = http.client.HTTPConnection("127.0.0.1", 8025, timeout=patience_s / 3)
    mail = {"from": "app@sender.example", "to": "b@example.net", "subject": f"{subject} by HTTP", "body": "Hello."}
    client.request("POST", "/v1/send", json.dumps(mail), {"X-API-Key": key, "Content-Type": "application/json"})
    answer = client.getresponse()
    if answer.status != 202:
        raise OSError(f"{answer.status} {answer.read()}")
refused = []
for way in (smtp, http_):
    began = time.monotonic()
    while True:
        try:
            way()
            break
        except OSError as error:
            refused.append(str(error))
            if time.monotonic() - began > patience_s:
                sys.exit(f"{way.__name__}: {error}")
            time.sleep(0.1)
print(json.dumps(refused))
"""
"""A client as they are: what is refused for now it tries again."""
REPLACE = """
import os, socket, sys, tempfile
place = sys.argv[1]
folder, own = os.path.dirname(place), tempfile.mkdtemp() + "/own.sock"
def bind(path):
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path)
ways = {
    "unlink": lambda: os.unlink(place),
    "rename": lambda: os.rename(place, place + "-aside"),
    "bind": lambda: bind(place),
    "bind-beside": lambda: bind(folder + "/another.sock"),
    "replace": lambda: (bind(own), os.rename(own, place)),
    "chmod": lambda: os.chmod(place, 0o666),
    "open-folder": lambda: os.chmod(folder, 0o777),
    "rename-folder": lambda: os.rename(folder, folder + "-aside"),
}
for name, way in ways.items():
    try:
        way()
    except OSError:
        continue
    print(name)
"""
"""Prints each way that leads to a socket of one's own in a place."""
LOG_IN = """
import urllib.request
print("Log in" in urllib.request.urlopen("http://127.0.0.1:8026/login").read().decode())
"""
POSTCONF = ("postconf", "-c", "/etc/opensend-milter/postfix")


@dataclass(frozen=True, slots=True)
class MailHost:
    """A host that `install --apply` has furnished, and what it was before."""

    host: SystemdHost
    database: Database
    key: str
    before: dict[str, State]
    secrets: frozenset[str]
    owner_url: str
    """Of the database, for whoever installs."""

    def mail_flows(self, subject: str) -> list[str]:
        """Send by both doors until both have taken it, and wait until both are delivered; return what was refused."""
        script = self.host.run(str(HOME / "bin/python"), "-c", SEND, self.key, subject, str(patience_s())).stdout
        await_true(lambda: self.delivered(subject) == {"SMTP", "HTTP"}, f"{subject} arrives")
        refused: list[str] = json.loads(script)
        return refused

    def delivered(self, subject: str) -> set[str]:
        """Name the doors by which a subject came."""
        folder = self.host.root / "var/lib/opensend-milter/maildir/new"
        texts = "".join(path.read_text() for path in folder.iterdir()) if folder.is_dir() else ""
        return set(re.findall(f"^Subject: {subject} by (SMTP|HTTP)", texts, re.MULTILINE))

    def main_pid(self, unit: str) -> str:
        """Return its number inside."""
        return self.host.shown(unit, "MainPID")

    def is_new(self, unit: str, old: str) -> bool:
        """Tell whether another main process of the unit is ready."""
        shown = self.host.systemctl("show", "--property=MainPID,SubState", unit).splitlines()
        return "SubState=running" in shown and f"MainPID={old}" not in shown


@pytest.fixture(scope="module")
def mail_host(_shared_cluster: Cluster, _template: Path) -> Iterator[MailHost]:
    directory, name = _shared_cluster.directory, "systemd_host"
    # As /run/postgresql is: everybody may go through it to the socket.
    directory.chmod(0o755)
    _shared_cluster.new_database(name, template="template_opensend")
    database = Database(name, _shared_cluster, _template)
    place = f"host={DATABASE_DIR}&port={_shared_cluster.port}"
    with booted(directory) as host:
        furnish(host, f"postgresql:///{name}?{place}")
        # Roles belong to the cluster, which other tests use too: their passwords stay.
        (host.root / "etc/opensend-milter/passwords").mkdir(mode=0o700)
        secrets = {role: (_template / role).read_text().strip() for role in LOGIN_ROLES}
        for role, secret in secrets.items():
            host.write(f"/etc/opensend-milter/passwords/{role}", secret + "\n", 0o600)
        before = host.written()
        owner_url = f"postgresql://{SUPERUSER}:{PASSWORD}@/{name}?{place}"
        host.install("--apply", DATABASE_URL=owner_url)
        yield MailHost(host, database, make_key(database), before, frozenset(secrets.values()), owner_url)
    _shared_cluster.drop_database(name)


def test_all_come_up_and_mail_flows(mail_host: MailHost) -> None:
    host = mail_host.host
    assert host.systemctl("is-system-running", check=False) == "running"
    active = host.systemctl("list-units", "--plain", "--no-legend", "--state=active", "opensend-*")
    assert {line.split()[0] for line in active.splitlines()} == STAY
    assert host.shown("opensend-milter.service", "WatchdogUSec") == "30s"
    assert not mail_host.mail_flows("first")
    timers = host.systemctl("list-timers", "--no-legend")
    assert {"opensend-prune.timer", "opensend-domains.timer"} <= set(timers.split())
    for unit in OURS:
        shown = host.systemctl("show", unit)
        assert not any(secret in shown for secret in mail_host.secrets)
        assert host.journal(unit)
    # The console is off until it is configured, and its units are not there.
    installed = [name for name in shipped_units.names() if name not in shipped_units.CONSOLE]
    verified = host.run("systemd-analyze", "verify", "--man=no", *installed)
    assert not verified.stdout + verified.stderr


@pytest.mark.case(80)
@pytest.mark.parametrize(
    "account", ["opensend-milter:opensend", "opensend-http:opensend", "opensend-auth:postfix", "postfix:postfix"]
)
def test_nobody_puts_another_socket_in_the_gates_place(mail_host: MailHost, account: str) -> None:
    """Neither as serve, taken over, nor in the group that may connect."""
    user, group = account.split(":")
    host, socket = mail_host.host, Config().auth.socket
    there = (host.root / socket.relative_to("/")).stat().st_ino
    program = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "/usr/bin/python3", "-c", REPLACE)
    assert host.run(*program, str(socket)).stdout.split() == []
    assert (host.root / socket.relative_to("/")).stat().st_ino == there


def test_a_host_of_before_moves_over(mail_host: MailHost) -> None:
    """The gate answers at both places until Postfix is told; with the version before itself: make upgrade-test."""
    host, unit = mail_host.host, "/etc/systemd/system/opensend-auth-gate.socket"
    old, new, now = "/var/spool/postfix-opensend/opensend-milter/auth.sock", str(Config().auth.socket), host.read(unit)
    host.write(unit, re.sub(r"(?m)^Symlinks=.*\n", "", now.replace(new, old)))
    host.run(*POSTCONF, "-e", f"smtpd_sasl_path = {old}")
    host.systemctl("daemon-reload")
    host.systemctl("restart", "opensend-auth-gate.socket", "opensend-postfix.service")
    mail_host.mail_flows("before")
    # As the package does when it is configured.
    host.write(unit, now)
    host.systemctl("daemon-reload")
    host.systemctl("try-restart", "opensend-auth-gate.socket")
    refused = mail_host.mail_flows("at-both")
    host.run(*POSTCONF, "-e", f"smtpd_sasl_path = {new}")
    host.systemctl("reload", "opensend-postfix.service")
    refused += mail_host.mail_flows("moved")
    assert not [text for text in refused if text.startswith("(5")], "never for good"


def test_what_is_killed_is_started_again(mail_host: MailHost) -> None:
    """All at once is harder than one by one: none may need another to be there."""
    host = mail_host.host
    old = {unit: mail_host.main_pid(unit) for unit in OURS}
    master = (host.root / "var/spool/postfix-opensend/pid/master.pid").read_text().strip()
    # The last may be gone with the first by the time its turn comes.
    host.run("kill", "-KILL", *old.values(), master, check=False)
    refused = mail_host.mail_flows("killed")
    for unit, pid in old.items():
        await_true(lambda unit=unit, pid=pid: mail_host.is_new(unit, pid), f"{unit} is there again")  # type: ignore[misc]
        assert host.shown(unit, "NRestarts") == "1", unit
    assert not [text for text in refused if "535" in text or text.startswith("(5")], "never for good"


def test_postfix_is_stopped_in_order(mail_host: MailHost) -> None:
    """Its main process is a shell, which must not be the only one that hears of it."""
    host, unit = mail_host.host, "opensend-postfix.service"
    mail_host.mail_flows("before-stop")
    before = host.times_said(unit, "terminating on signal 15")
    host.systemctl("restart", unit)
    await_true(lambda: host.times_said(unit, "terminating on signal 15") == before + 1, "its master hears of it")
    mail_host.mail_flows("after-stop")


def test_the_watchdog_ends_a_serve_that_stands_still(mail_host: MailHost) -> None:
    host, unit = mail_host.host, "opensend-milter.service"
    drop_in = f"/run/systemd/system/{unit}.d/impatient.conf"
    host.write(drop_in, f"[Service]\nWatchdogSec={scaled_s(2):.0f}\n")
    try:
        host.systemctl("daemon-reload")
        host.systemctl("restart", unit)
        old = mail_host.main_pid(unit)
        host.run("kill", "-STOP", old)
        await_true(lambda: mail_host.is_new(unit, old), "another serve")
        assert "Watchdog timeout" in host.journal(unit)
        mail_host.mail_flows("watchdog")
    finally:
        (host.root / drop_in.removeprefix("/")).unlink()
        host.systemctl("daemon-reload")
        host.systemctl("restart", unit)


def test_reload_reads_the_configuration_again(mail_host: MailHost) -> None:
    host, place = mail_host.host, CONFIG_PATH
    reloads = [unit for unit in sorted(OURS) if host.shown(unit, "CanReload") == "yes"]
    assert set(reloads) == OURS
    ours = [unit for unit in reloads if unit not in {"opensend-dovecot.service", "opensend-postfix.service"}]
    pids = {unit: mail_host.main_pid(unit) for unit in reloads}
    right = host.read(place)
    for content, said in (
        (right + "log: {level: debug}\n", 'log.level: "info" -> "debug" (in force)'),
        (right + "log: {level: loud}\n", "not reloaded, the old configuration stays"),
        (right, 'log.level: "debug" -> "info" (in force)'),
    ):
        (host.root / place.removeprefix("/")).write_text(content)
        host.systemctl("reload", *reloads)
        for unit in ours:
            await_true(lambda unit=unit, said=said: said in host.journal(unit), f"{unit}: {said}")  # type: ignore[misc]
    assert {unit: mail_host.main_pid(unit) for unit in reloads} == pids
    mail_host.mail_flows("reloaded")


def test_a_wrong_configuration_is_not_tried_again(mail_host: MailHost) -> None:
    host, unit, place = mail_host.host, "opensend-worker.service", CONFIG_PATH
    right = host.read(place)
    (host.root / place.removeprefix("/")).write_text(right + "wrong: 1\n")
    host.systemctl("restart", unit, check=False)
    shown = host.systemctl("show", "--property=SubState,ExecMainStatus", unit).splitlines()
    assert sorted(shown) == ["ExecMainStatus=78", "SubState=failed"]
    (host.root / place.removeprefix("/")).write_text(right)
    host.systemctl("start", unit)
    mail_host.mail_flows("mended")


def test_the_target_stops_and_starts_all(mail_host: MailHost) -> None:
    host = mail_host.host
    host.systemctl("stop", "opensend-*")
    for unit in STAY:
        assert host.shown(unit, "ActiveState") == "inactive", unit
    assert not list((host.root / "var/spool/postfix-opensend/opensend-milter").iterdir())
    # As at boot.
    host.systemctl("start", "multi-user.target")
    mail_host.mail_flows("booted")
    pids = {unit: mail_host.main_pid(unit) for unit in OURS}
    host.systemctl("restart", "opensend-milter.target")
    for unit, old in pids.items():
        assert mail_host.is_new(unit, old), unit
    mail_host.mail_flows("restarted")


def test_another_certificate_is_shown(mail_host: MailHost) -> None:
    host = mail_host.host
    reloads = {
        unit: host.times_said(unit, f"Reloaded {unit}")
        for unit in ("opensend-postfix.service", "opensend-http.service")
    }
    made = make_certificate(host.root / "etc/ssl/mail", ["relay.example.org"], now=dt.datetime.now(dt.UTC))
    asked = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 465)))"
    new = made.pair.certificate.read_text().split("-----END")[0]
    await_true(
        lambda: host.run(str(HOME / "bin/python"), "-c", asked, check=False).stdout.startswith(new), "Postfix shows it"
    )
    for unit, times in reloads.items():
        await_true(lambda unit=unit, times=times: host.times_said(unit, f"Reloaded {unit}") > times, f"{unit} reads it")  # type: ignore[misc]
    mail_host.mail_flows("certified")


def test_the_timers_services_run(mail_host: MailHost) -> None:
    host = mail_host.host
    host.systemctl("start", "opensend-prune.service")
    assert "nothing to delete" in host.journal("opensend-prune.service")
    # Nobody answers DNS here: it says so, and changes nothing.
    host.systemctl("start", "opensend-domains.service", check=False)
    assert host.shown("opensend-domains.service", "ExecMainStatus") == "75"
    assert "nothing was changed" in host.journal("opensend-domains.service")
    # What its unit keeps it from seeing is no fault of the host's.
    host.systemctl("start", "opensend-doctor.service")
    with mail_host.database.connect() as connection:
        rows = connection.execute("SELECT name, result, seen FROM opensend_milter.findings").fetchall()
    found = {str(name): (str(result), str(seen)) for name, result, seen in rows}
    for name in (
        "postfix.running",
        "postfix.relay",
        "dovecot.version",
        "database.passwords",
        "milter.answers",
        "machine.queue-space",
    ):
        assert found[name][0] == "good", found[name]
    assert not [seen for _, seen in found.values() if "could not be looked at" in seen]


def test_what_must_be_denied_is(mail_host: MailHost) -> None:
    said = mail_host.host.run(str(PROGRAM), "selftest", "--security").stdout
    commands = [line for line in said.splitlines() if line.startswith("systemd-run ")]
    assert len(commands) == 5
    for command in commands:
        assert "all as it must be" in mail_host.host.run(*shlex.split(command)).stdout


def test_the_console_is_switched_on_and_off_again(mail_host: MailHost) -> None:
    """It is on in the end, so that the undo finds it."""
    host, off = mail_host.host, mail_host.host.read(CONFIG_PATH)
    for is_on in (True, False, True):
        (host.root / CONFIG_PATH.removeprefix("/")).write_text(off + "console: {port: 8026}\n" if is_on else off)
        host.install("--apply", DATABASE_URL=mail_host.owner_url)
        for unit in shipped_units.CONSOLE:
            assert host.shown(unit, "ActiveState") == ("active" if is_on else "inactive"), unit
            assert (host.shown(unit, "LoadState") == "loaded") == is_on, unit
        asked = host.run(str(HOME / "bin/python"), "-c", LOG_IN, check=False).stdout.strip()
        assert asked == ("True" if is_on else "")
    assert not mail_host.mail_flows("beside-the-console")
    (host.root / CONFIG_PATH.removeprefix("/")).write_text(off)


def test_undo_leaves_nothing(mail_host: MailHost) -> None:
    """Also nothing of what systemd knows: when a timer ran last, what failed; nor the console, which is on."""
    host = mail_host.host
    host.systemctl("start", "opensend-domains.service", check=False)
    assert "opensend-domains.service" in host.systemctl("list-units", "--failed")
    undone = host.install("--undo", "--force")
    assert "steps taken back" in undone.stdout
    units = partial(host.systemctl, "list-units", "--all", "opensend-*", "--no-legend")
    await_true(lambda: "opensend" not in units(), units)
    state = partial(host.systemctl, "is-system-running", check=False)
    await_true(lambda: state() == "running", state)
    running = (*OF_RUNNING, "/var/tmp/", "/var/lib/systemd/", "/etc/ssl/mail/")  # traces of what ran
    assert {path for path in host.changes(mail_host.before) if not f"{path}/".startswith(running)} == LEFT_BY_THE_SYSTEM
    assert not [path for path in host.changes(mail_host.before) if "opensend" in path]
