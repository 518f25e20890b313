"""`doctor` on a healthy host, and on the same host with one thing wrong in a copy of what it was given."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.admin.connections import needed
from opensend_milter.adapters.postgres.link import statements
from opensend_milter.adapters.schema.roles import LOGIN_ROLES
from opensend_milter.app.examining import examination
from opensend_milter.config import Tls, load
from opensend_milter.core.findings import Finding, Result, chosen, examine
from opensend_milter.host.examining.host_checks import Site
from opensend_milter.host.rendering.certificates import make_certificate
from tests.acceptance.running_sandbox import Sandbox
from tests.waiting import patience_s

ON_PURPOSE = {"database.durable"}
"""`sandbox up --fast` writes nothing to disk, and doctor says so."""
NOBODY = 65534
PROGRAM = (
    "import typer; from opensend_milter.cli.machine.doctor import doctor; a = typer.Typer(); a.command()(doctor); a()"
)


@pytest.fixture
def site(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("DATABASE_URL", sandbox["SANDBOX_DATABASE_URL"])
    path = sandbox.directory / "opensend-milter.yaml"
    return Site(
        config=load(path),
        config_path=path,
        postfix_dir=sandbox.directory / "postfix",
        dovecot_dir=sandbox.directory / "dovecot",
    )


def examined(site: Site, *only: str) -> dict[str, Finding]:
    with examination(site) as checks:
        return {one.name: one for one in examine(checks, chosen(checks, only))}


def doctor(sandbox: Sandbox, *options: str, as_user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--config", str(sandbox.directory / "opensend-milter.yaml"), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience_s(),
        user=as_user,
        group=as_user,
        extra_groups=[] if as_user else None,
        env={"DATABASE_URL": sandbox["SANDBOX_DATABASE_URL"], "PYTHONPATH": ":".join(sys.path)},
    )


def test_nothing_is_wrong_on_a_healthy_host(site: Site) -> None:
    findings = examined(site)
    wrong = {name for name, one in findings.items() if one.result in {Result.PROBLEM, Result.WARNING}}
    assert wrong <= ON_PURPOSE, [findings[name] for name in wrong]
    assert sum(one.result is Result.GOOD for one in findings.values()) > 70


def test_a_probe_goes_through_every_port_and_arrives(sandbox: Sandbox) -> None:
    before = set(sandbox.inbox())  # and what others have sent for a later time may come meanwhile
    done = doctor(sandbox, "--probe", "--only", "probe", "--only", "smtp.canary-key", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert set(found) == {"smtp.canary-key", "probe.relay", "probe.submission", "probe.smtps", "probe.http"}
    assert all(one["result"] == "good" for one in found.values()), found
    assert all(one["seen"].endswith("sent") for name, one in found.items() if name.startswith("probe")), found
    probes = [
        one for one in set(sandbox.inbox()) - before if b"\nSubject: opensend-milter doctor: probe" in one.read_bytes()
    ]
    assert len(probes) == 4
    with psycopg.connect(sandbox["SANDBOX_DATABASE_URL"]) as connection:
        left = connection.execute("SELECT count(*) FROM api_keys WHERE name LIKE 'doctor%'").fetchone()
    assert left == (0,), "its keys are revoked"


def test_what_is_found_is_put_down_whole_or_not_at_all(sandbox: Sandbox) -> None:
    """In the place of what was found before."""
    for options in (("--store", "--only", "tls"), ("--store", "--checklist"), ("--store", "--before-opensend")):
        assert doctor(sandbox, *options).returncode == 64
    found = [json.loads(doctor(sandbox, "--store", "--json").stdout)["findings"] for _ in range(2)][-1]
    with psycopg.connect(sandbox["SANDBOX_DATABASE_URL"]) as connection:
        kept = connection.execute("SELECT name, result FROM opensend_milter.findings ORDER BY name").fetchall()
    assert kept == sorted((one["name"], one["result"]) for one in found)
    assert len(kept) > 80


def test_the_checklist_is_the_part_that_is_about_security(sandbox: Sandbox) -> None:
    done = doctor(sandbox, "--checklist", "--only", "tls", "--only", "postfix")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[:-1]
    assert len(lines) > 12
    assert all(line.startswith("[x] ") for line in lines), done.stdout
    assert not [line for line in lines if "postfix.flow-delay" in line]


def test_a_problem_is_exit_code_1_and_says_why_and_what_mends_it(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("os_00000000000000000000000000000000\n")
    done = doctor(sandbox, "--only", "smtp.canary-key", "--key-file", str(tmp_path / "key"))
    assert done.returncode == 1
    assert "PROBLEM  smtp.canary-key" in done.stdout
    assert "why:" in done.stdout
    assert "mend: opensend-milter doctor" in done.stdout
    assert "os_0000" not in done.stdout + done.stderr


def test_a_canary_that_is_good(sandbox: Sandbox, site: Site, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(sandbox["SANDBOX_API_KEY"])
    found = examined(dataclasses.replace(site, key_file=tmp_path / "key"), "smtp.canary-key")
    assert found["smtp.canary-key"].result is Result.GOOD


def test_a_configuration_that_cannot_be_read_is_78(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("smtp:\n  relay_port: many\n")
    done = doctor(sandbox, "--config", str(tmp_path / "wrong.yaml"))
    assert done.returncode == 78
    assert "smtp.relay_port" in done.stderr


def test_what_only_root_may_see_is_skipped_for_others(sandbox: Sandbox) -> None:
    names = ("tls", "milter", "dovecot", "database.passwords", "postfix", "smtp.open-relay")
    done = doctor(sandbox, "--json", *(f"--only={name}" for name in names), as_user=NOBODY)
    found = {one["name"]: one["result"] for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, [name for name, result in found.items() if result == "problem"]
    assert found["tls.certificate"] == found["milter.answers"] == found["database.passwords"] == "skipped"
    assert found["postfix.relay"] == found["smtp.open-relay"] == "good"


def test_an_unknown_check_is_a_wrong_use(sandbox: Sandbox) -> None:
    done = doctor(sandbox, "--only", "weather")
    assert done.returncode == 64
    assert "no check is called 'weather'" in done.stderr


# ---------------------------------------------------------------- planted in a copy of main.cf or master.cf


@pytest.fixture
def copied(site: Site, tmp_path: Path) -> Site:
    """The same site with a copy of Postfix's and Dovecot's files, to be spoiled."""
    for name, folder in (("postfix", site.postfix_dir), ("dovecot", site.dovecot_dir)):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("state"))
    return dataclasses.replace(site, postfix_dir=tmp_path / "postfix", dovecot_dir=tmp_path / "dovecot")


def planted(site: Site, *options: str) -> None:
    subprocess.run(["postconf", "-c", str(site.postfix_dir), *options], check=True)
    _let_rest(site)


def _let_rest(site: Site) -> None:
    """Let Postfix not wait a second for the end of what it takes for half written."""
    for name in ("main.cf", "master.cf"):
        os.utime(site.postfix_dir / name, (0, 0))


def mended(site: Site, finding: Finding) -> None:
    """Do what was proposed, without the reload: nothing runs from the copy."""
    for line in finding.mend.splitlines():
        subprocess.run(line.partition(" && ")[0], shell=True, check=True)  # noqa: S602  # as an operator would
    _let_rest(site)


def test_the_checklist_does_not_tick_an_open_door(sandbox: Sandbox, copied: Site) -> None:
    """What each parameter is good for: tests/integration/test_doctor_postfix.py."""
    planted(copied, "-e", "smtpd_authorized_xclient_hosts=0.0.0.0/0")
    at_one_port = f"127.0.0.1:{sandbox['SANDBOX_SMTPS_PORT']}/inet/receive_override_options"
    planted(copied, "-P", f"{at_one_port}=no_milters")
    done = doctor(sandbox, "--checklist", "--only", "postfix", "--postfix-dir", str(copied.postfix_dir))
    assert done.returncode == 1
    others = [line for line in done.stdout.splitlines()[:-1] if not line.startswith("[x] ")]
    assert others == [
        f"[!] postfix.rendered: not as the configuration says: {at_one_port}, smtpd_authorized_xclient_hosts",
        "[ ] postfix.believed: smtpd_authorized_xclient_hosts = 0.0.0.0/0; expected nothing",
        "[ ] postfix.bypass: receive_override_options = no_milters; expected no_address_mappings",
    ]


def test_a_certificate_of_another_name(site: Site) -> None:
    smtp = dataclasses.replace(site.config.smtp, hostname="new.sandbox.test")
    found = examined(dataclasses.replace(site, config=dataclasses.replace(site.config, smtp=smtp)), "tls.hostname")
    assert found["tls.hostname"].result in {Result.PROBLEM, Result.WARNING}
    assert found["tls.hostname"].mend


# ---------------------------------------------------------------- planted in a copy of Dovecot's files

DOVECOT = [
    ("dovecot.verbose-passwords", "auth_verbose_passwords = no", "auth_verbose_passwords = plain"),
    ("dovecot.debug", "auth_debug = no", "auth_debug = yes"),
    ("dovecot.debug-passwords", "auth_debug_passwords = no", "auth_debug_passwords = yes"),
    ("dovecot.cache-size", "auth_cache_size = 0", "auth_cache_size = 10 M"),
]


@pytest.mark.parametrize(("check", "right", "wrong"), DOVECOT, ids=[check for check, *_ in DOVECOT])
def test_a_setting_of_dovecot_that_is_wrong(copied: Site, check: str, right: str, wrong: str) -> None:
    main = copied.dovecot_dir / "dovecot.conf"
    main.write_text(main.read_text().replace(right, wrong))
    found = examined(copied, check)[check]
    assert found.result is Result.PROBLEM, found
    mended(copied, found)
    assert examined(copied, check)[check].result is Result.GOOD
    assert examined(copied, "dovecot.rendered")["dovecot.rendered"].result is Result.WARNING, "the copy is elsewhere"


def test_a_password_that_every_user_may_read(copied: Site) -> None:
    (copied.dovecot_dir / "dovecot-sql.conf").chmod(0o644)
    found = examined(copied, "dovecot.file-mode")["dovecot.file-mode"]
    assert found.result is Result.PROBLEM
    mended(copied, found)
    assert examined(copied, "dovecot.file-mode")["dovecot.file-mode"].result is Result.GOOD


def test_dovecot_with_a_password_of_before(sandbox: Sandbox, site: Site, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    shutil.copytree(sandbox.directory / "passwords", passwords)
    (passwords / "opensend_dovecot_auth").write_text("another")
    database = dataclasses.replace(site.config.database, password_dir=passwords)
    spoiled = dataclasses.replace(
        site, config=dataclasses.replace(site.config, database=database), config_path=tmp_path / "none.yaml"
    )
    assert examined(spoiled, "dovecot.rendered")["dovecot.rendered"].result is Result.WARNING
    found = examined(spoiled, "database.passwords")["database.passwords"]
    assert found.result is Result.PROBLEM
    assert found.seen.startswith("opensend_dovecot_auth")
    assert "another" not in found.seen


def test_files_that_dovecot_cannot_read(copied: Site) -> None:
    (copied.dovecot_dir / "dovecot.conf").write_text("no_such_setting = 1\n")
    assert examined(copied, "dovecot.configuration")["dovecot.configuration"].result is Result.PROBLEM


# ---------------------------------------------------------------- planted in the running sandbox, and taken away again


def test_a_held_message(sandbox: Sandbox, site: Site) -> None:
    held = sandbox.directory / "queue" / "hold" / "4doctor"
    held.write_bytes(b"")
    try:
        found = examined(site, "postfix.held")["postfix.held"]
    finally:
        held.unlink()
    assert found.result is Result.PROBLEM
    assert "1 held" in found.seen


def test_another_certificate_than_the_one_that_is_shown(site: Site, tmp_path: Path) -> None:
    make_certificate(tmp_path, ["mail.sandbox.test"], now=dt.datetime.now(dt.UTC))
    renewed = dataclasses.replace(site, config=dataclasses.replace(site.config, tls=Tls(folder=tmp_path)))
    found = examined(renewed, "smtp.certificate")["smtp.certificate"]
    assert found.result is Result.PROBLEM
    assert "reload" in found.mend


def test_no_process_holds_more_connections_than_is_reckoned(sandbox: Sandbox, site: Site) -> None:
    """What `database.limits` reckons with is what the processes do, and not far from it."""
    with psycopg.connect(sandbox["SANDBOX_DATABASE_URL"]) as connection:
        rows = connection.execute(statements("inspection")["role_use"], {"roles": list(LOGIN_ROLES)}).fetchall()
    used = {role: number for role, _, number, *_ in rows}
    reckoned = needed(site.config)
    assert {role: used[role] for role in reckoned if used[role] > reckoned[role]} == {}
    assert used["opensend_worker"] >= site.config.delivery.concurrency
