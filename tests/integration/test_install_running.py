"""With it applied both take mail, and who was there before notices nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.schema import migrations
from opensend_milter.adapters.schema.roles import LOGIN_ROLES
from opensend_milter.host.installing import blueprint
from tests.integration.copied_system import CopiedSystem, clean_environment, copied_system
from tests.integration.private_postgres import PASSWORD, SUPERUSER, Database
from tests.integration.test_install import LEFT_BY_THE_SYSTEM, furnish
from tests.waiting import await_found, await_true, patience_s

OF_RUNNING = (
    "/var/log/",
    "/var/spool/postfix/",
    "/var/lib/postfix/",
    "/var/lib/dovecot",
    "/var/mail/",
    "/run/",
    "/tmp/",
)
"""Where what runs leaves its traces, whoever is installed beside it."""
DIALOGUE = """
import json, re, socket
said = []
with socket.create_connection(("127.0.0.1", 25), 20) as s, s.makefile("rwb") as f:
    def hear():
        while True:
            line = f.readline().decode().rstrip()
            said.append(re.sub("queued as \\\\S+", "queued as ID", line))
            if line[3:4] != "-":
                return
    hear()
    for line in ("EHLO client.example", "NONSENSE", "MAIL FROM:<a@example.com> SIZE=10",
                 "RCPT TO:<someone@old.example.org>", "RCPT TO:<nobody-there@old.example.org>", "VRFY root", "DATA",
                 "Subject: a\\r\\nX-Test: b\\r\\n\\r\\nhello\\r\\n.", "MAIL FROM:<a@example.com>",
                 "RCPT TO:<root@localhost>", "DATA", "X-Never: a\\r\\n\\r\\nhello\\r\\n.", "AUTH PLAIN AAAA",
                 "RSET", "QUIT"):
        f.write(line.encode() + b"\\r\\n")
        f.flush()
        hear()
print(json.dumps(said))
"""
SUBMIT = """
import smtplib, ssl, sys
port, key, recipient = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.create_default_context(cafile="/etc/ssl/mail/ca.pem")
make = (lambda: smtplib.SMTP_SSL("127.0.0.1", port, context=context)) if port == 465 else (
    lambda: smtplib.SMTP("127.0.0.1", port))
context.check_hostname = False
with make() as client:
    if port != 465:
        client.starttls(context=context)
    try:
        client.login("apikey", key)
    except smtplib.SMTPAuthenticationError as error:
        sys.exit(f"{error.smtp_code} {error.smtp_error.decode()}")
    client.mail("app@sender.example"); client.rcpt(recipient)
    code, text = client.data(f"From: app@sender.example\\r\\nTo: {recipient}\\r\\nSubject: x\\r\\n\\r\\n{port}\\r\\n")
    print(code, text.decode())
"""


@contextmanager
def running_host(database: Database) -> Iterator[tuple[CopiedSystem, str]]:
    """A host whose old Postfix runs; with it, the URL of a superuser."""
    directory = database.cluster.directory
    directory.chmod(0o711)
    place = f"host={quote(str(directory), safe='')}&port={database.cluster.port}"
    with copied_system(directory) as system:
        furnish(system, f"postgresql:///{database.name}?{place}")
        # Roles belong to the cluster, which other tests use too: their passwords stay.
        (system.root / "etc/opensend-milter/passwords").mkdir(mode=0o700)
        for role in LOGIN_ROLES:
            system.write(f"/etc/opensend-milter/passwords/{role}", (database.password_dir / role).read_text(), 0o600)
        system.run("postfix", "start")
        await_true(lambda: "daemon started" in system.read("/var/log/postfix-old.log"), "the old Postfix starts")
        yield system, f"postgresql://{SUPERUSER}:{PASSWORD}@/{database.name}?{place}"


@contextmanager
def kept_running(system: CopiedSystem, name: str, *argv: str) -> Iterator[None]:
    """Keep a program running in the foreground."""
    with (
        (system.root / f"run/{name}.log").open("wb") as output,
        subprocess.Popen(
            system.command(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean_environment()
        ) as running,
    ):
        try:
            yield
        finally:
            # nsenter hands no signal on.
            for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
            running.wait(patience_s())


@contextmanager
def started(system: CopiedSystem, name: str, user: str | None = None, role: str | None = None) -> Iterator[None]:
    """Start one of our programs as its unit would: as its user, with its password where only it can read it."""
    environment = ["env"]
    if role:
        folder = f"/run/credentials-{name}"
        system.run("install", "-d", "-m", "0700", "-o", str(user), folder)
        system.run("install", "-m", "0400", "-o", str(user), f"/etc/opensend-milter/passwords/{role}", folder)
        environment.append(f"OPENSEND_MILTER_DATABASE_PASSWORD_DIR={folder}")
    as_user = ["setpriv", f"--reuid={user}", "--regid=opensend", "--init-groups", "--no-new-privs"] if user else []
    with kept_running(system, name, *as_user, *environment, sys.executable, "-P", "-m", "opensend_milter", name):
        yield


def old_log(system: CopiedSystem) -> list[str]:
    """Return what the old Postfix logged, but for times, process ids, queue ids and a clock that is behind."""
    told = system.read("/var/log/postfix-old.log").splitlines()
    lines = [line for line in told if not re.search("opensend|anvil|file system clock", line)]
    plain = (re.sub(r"^\S+ +\d+ \S+ \S+ |\[\d+\]|delays?=\S+|pid \d+", "", line) for line in lines)
    return sorted(re.sub(r"\b[0-9A-F]{6,12}\b|message-id=<\S+>|size=\d+", "ID", line) for line in plain)


def dialogue(system: CopiedSystem) -> list[str]:
    found: list[str] = json.loads(system.run(sys.executable, "-c", DIALOGUE).stdout)
    return found


def asked(system: CopiedSystem) -> tuple[str, str]:
    """Return what the old Postfix says of itself."""
    return system.run("postconf", "-n").stdout, system.run("postconf", "-M").stdout


def submit(system: CopiedSystem, port: int, key: str, *, check: bool = True) -> str:
    done = system.run(sys.executable, "-c", SUBMIT, str(port), key, f"to-{port}@example.net", check=check)
    return done.stdout + done.stderr


def answer(system: CopiedSystem, port: int, key: str) -> str:
    """Send until it is not put off: a Dovecot that takes up its new configuration may lose who just logs in."""

    def find() -> str | None:
        said = submit(system, port, key, check=False)
        return None if said.startswith("454") else said

    return await_found(find, lambda: "\n".join(path.read_text() for path in (system.root / "run").glob("*.log")))


def listens(system: CopiedSystem, port: int) -> bool:
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close()"
    return system.run(sys.executable, "-c", probe, check=False).returncode == 0


def make_key(database: Database) -> str:
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        user = store.ensure_user("installed")
        store.add_domain(user, "sender.example", verified=True)
        return store.create_key(name="installed", user_id=user, permission="full_access", domain=None).token


def log_of_two_dialogues(system: CopiedSystem) -> tuple[list[str], list[str]]:
    """Speak to the old Postfix, and return what both sides said."""
    place = system.root / "var/log/postfix-old.log"
    place.write_text("")
    said = dialogue(system)
    ends = (": removed", ": disconnect from", "message content rejected")
    await_true(lambda: all(end in system.read("/var/log/postfix-old.log") for end in ends), "the old Postfix delivers")
    return said, old_log(system)


@contextmanager
def ours(system: CopiedSystem, dovecot: tuple[str, ...] | None, postfix: tuple[str, ...] | None) -> Iterator[None]:
    """Start what systemd would."""
    with ExitStack() as running:
        if dovecot:
            running.enter_context(kept_running(system, "dovecot", *dovecot))
        # As root, where systemd would hand it its socket.
        running.enter_context(started(system, "auth-gate"))
        running.enter_context(started(system, "serve", "opensend-milter", "opensend_milter"))
        running.enter_context(started(system, "worker", "opensend-worker", "opensend_worker"))
        sockets = system.root / "var/spool/postfix-opensend"
        for name in ("opensend-auth/auth.sock", "opensend-milter/milter.sock"):
            await_true(lambda name=name: (sockets / name).is_socket(), f"{name} is there")  # type: ignore[misc]
        if postfix:
            system.run(*postfix, "start")
            running.callback(system.run, *postfix, "stop")
        await_true(lambda: listens(system, 587), "port 587 answers")
        yield


OWN_DOVECOT = ("dovecot", "-F", "-c", "/etc/opensend-milter/dovecot/dovecot.conf")
OWN_POSTFIX = ("postfix", "-c", "/etc/opensend-milter/postfix")


@pytest.mark.case(66)
@pytest.mark.parametrize("mode", ["instance", "services"])
def test_both_take_mail_and_the_old_one_notices_nothing(database: Database, mode: str) -> None:
    is_instance = mode == "instance"
    options = () if is_instance else ("--mode", "services", "--dovecot", "existing")
    with running_host(database) as (system, url), ExitStack() as running:
        key = make_key(database)
        if not is_instance:
            running.enter_context(kept_running(system, "old-dovecot", "dovecot", "-F"))
            await_true((system.root / "run/dovecot/master.pid").exists, "the old Dovecot runs")
        before_said, before_logged = log_of_two_dialogues(system)
        before_asked, before = asked(system), system.written()

        applied = system.install("--apply", *options, DATABASE_URL=url)
        assert "db init" in applied.stderr
        with ours(system, OWN_DOVECOT if is_instance else None, OWN_POSTFIX if is_instance else None):
            for port in (2587, 587, 465):
                assert answer(system, port, key).startswith("250 2.0.0 Ok: queued as"), port
            if is_instance:  # the delays of an existing Dovecot would hold for what follows
                assert "535" in submit(system, 587, "os_wrong", check=False)
            assert log_of_two_dialogues(system) == (before_said, before_logged)
            if is_instance:
                assert asked(system) == before_asked
            else:
                settings, entries = asked(system)
                assert settings == before_asked[0]
                assert entries.startswith(before_asked[1]), "their entries, then ours"
            maildir = system.root / "var/lib/opensend-milter/maildir/new"
            await_true(lambda: maildir.is_dir() and len(list(maildir.iterdir())) == 3, "the worker delivers all three")
            refused = system.install("--undo", check=False)
            assert "3 messages lie in" in refused.stderr
        assert "nothing to do" in system.install("--apply", *options, DATABASE_URL=url).stdout
        system.install("--undo", "--force")
        assert {path for path in system.changes(before) if not f"{path}/".startswith(OF_RUNNING)} == LEFT_BY_THE_SYSTEM
        assert dialogue(system) == before_said
        assert not listens(system, 587)
        system.run("postfix", "stop")


SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl.log
"""


def test_systemd_is_told_in_the_right_order(database: Database) -> None:
    """No systemd runs in the copy: a program of its name writes down what it is asked."""
    with running_host(database) as (system, url):
        system.write("/run/systemctl.log", "")
        system.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)
        (system.root / "run/systemd/system").mkdir()
        system.install("--apply", DATABASE_URL=url)
        reload, restart, start = system.read("/run/systemctl.log").splitlines()
        assert (reload, start) == ("daemon-reload", "start opensend-milter.target")
        assert {"restart", "opensend-milter.service", "opensend-auth-gate.socket"} <= set(restart.split())
        assert "opensend-prune.service" not in restart
        system.write("/run/systemctl.log", "")
        system.install("--apply", DATABASE_URL=url)
        assert not system.read("/run/systemctl.log"), "nothing changed, so nothing is restarted"
        system.install("--undo")
        stop, clean, forget, reload = system.read("/run/systemctl.log").splitlines()
        assert stop.startswith("stop opensend-milter.target")
        assert "opensend-certificate.service" in stop, "also what a timer or a path has started"
        assert clean == "clean --what=state opensend-domains.timer opensend-prune.timer"
        assert forget == "reset-failed opensend-*"
        assert reload == "daemon-reload"
        system.run("postfix", "stop")


def refused_without_passwords(system: CopiedSystem, database: Database, url: str) -> None:
    """As on a second host: the plan says so, nothing is changed, and the first host's password is still good."""
    place = system.root / "etc/opensend-milter/passwords"
    place.rename(place.with_name("aside"))
    before = system.written()
    plan = system.install("--plan", DATABASE_URL=url, check=False)
    refused = system.install("--apply", DATABASE_URL=url, check=False)
    for said in (plan.stdout, refused.stderr):
        assert "the password is not in /etc/opensend-milter/passwords, and with a new one" in said
        assert "copy that directory from one of them; if there is none, --new-passwords" in said
    assert (plan.returncode, refused.returncode) == (1, 1)
    assert not system.changes(before)
    assert "ERROR" not in system.install("--plan", "--new-passwords", DATABASE_URL=url).stdout
    with database.connect("opensend_milter") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    place.with_name("aside").rename(place)


def new_ones_are_made_where_they_are_asked_for(system: CopiedSystem, database: Database, url: str) -> None:
    """As that refusal says: where no host has the files any more. The first host's are good no longer."""
    place = system.root / "etc/opensend-milter/passwords"
    before = {path.name: path.read_text() for path in place.iterdir()}
    place.rename(place.with_name("aside"))
    try:
        system.install("--apply", "--new-passwords", DATABASE_URL=url)
        made = {path.name: path.read_text() for path in place.iterdir()}
        assert before.keys() <= made.keys()
        assert not set(before.values()) & set(made.values())
        for role in LOGIN_ROLES:
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(database.url_for(role)).close()
            psycopg.connect(conninfo_for(database.url, place, role)).close()
    finally:
        # Roles belong to the cluster, which other tests use too.
        migrations.init(database.url, database.password_dir)


def test_output_holds_no_secret_and_a_database_that_is_away_undoes_all(database: Database) -> None:
    with running_host(database) as (system, url):
        refused_without_passwords(system, database, url)
        passwords = [path.read_text().strip() for path in (system.root / "etc/opensend-milter/passwords").iterdir()]
        before = system.written()
        plan = system.install("--plan", "--json")
        steps = json.loads(plan.stdout)["steps"]
        assert {step["state"] for step in steps} == {"to be done", "as it should be"}
        away = system.install("--apply", DATABASE_URL=url.replace(database.name, "no_such_database"), check=False)
        assert away.returncode == 69, away
        assert {path for path in system.changes(before) if not f"{path}/".startswith(OF_RUNNING)} == LEFT_BY_THE_SYSTEM
        place = "/etc/opensend-milter/opensend-milter.yaml"
        right = system.read(place)
        system.write(place, right.replace(f"port={database.cluster.port}", "port=1"))
        locked_out = system.install("--apply", DATABASE_URL=url, check=False)
        assert locked_out.returncode == 69
        assert "role opensend_dovecot_auth cannot log in at database.url" in locked_out.stderr
        assert f"local {database.name} opensend_dovecot_auth,opensend_milter," in locked_out.stderr
        system.write(place, right)
        applied = system.install("--apply", DATABASE_URL=url)
        status = system.install("--status", "--json")
        assert {thing["state"] for thing in json.loads(status.stdout)["things"]} == {"as installed"}
        journal = system.root / "var/lib/opensend-milter/install/journal.jsonl"
        assert journal.stat().st_mode & 0o777 == 0o600
        for done in (plan, away, locked_out, applied, status, system.install("--plan")):
            assert not [one for one in (*passwords, PASSWORD) if one in done.stdout + done.stderr]
        other = system.install("--plan", "--mode", "services", check=False)
        assert (other.returncode, "installed with the other mode" in other.stdout) == (1, True)
        new_ones_are_made_where_they_are_asked_for(system, database, url)
        system.run("postfix", "stop")


@pytest.mark.parametrize("heeds", [True, False])
def test_a_dovecot_that_does_not_heed_the_reload_is_told_of(tmp_path: Path, *, heeds: bool) -> None:
    listener = tmp_path / "auth.sock"
    bind = f"import socket; socket.socket(socket.AF_UNIX).bind('{listener}')"
    doveadm = tmp_path / "doveadm"
    doveadm.write_text(f'#!/bin/sh\n{"exec" if heeds else ":"} {sys.executable} -c "{bind}"\n')
    doveadm.chmod(0o755)
    script = blueprint._RELOAD_DOVECOT.replace("sleep 0.2", "sleep 0.01")
    done = subprocess.run(["sh", "-c", script, doveadm, listener], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if heeds else 1)
    assert ("does not listen" in done.stderr) == (not heeds)
