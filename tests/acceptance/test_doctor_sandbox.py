"""`doctor` on a healthy host, and on the same host with one thing wrong in a copy of what it was given."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.admin.connections import needed
from opensend_milter.adapters.postgres.link import statements
from opensend_milter.adapters.schema.roles import LOGIN_ROLES
from opensend_milter.app.examining import examination
from opensend_milter.config import Config, Milter, Size, Smtp, Tls, load
from opensend_milter.core.findings import Finding, Result, chosen, examine
from opensend_milter.host.examining.host_checks import Site
from opensend_milter.host.rendering.certificates import make_certificate
from tests.acceptance.running_sandbox import Sandbox
from tests.waiting import patience_s

ON_PURPOSE = {"database.durable"}
"""`sandbox up --fast` writes nothing to disk, and doctor says so."""
NOBODY = 65534
PROGRAM = "import typer; from opensend_milter.cli.doctor import doctor; a = typer.Typer(); a.command()(doctor); a()"


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
    before = len(sandbox.inbox())
    done = doctor(sandbox, "--probe", "--only", "probe", "--only", "smtp.canary-key", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert set(found) == {"smtp.canary-key", "probe.relay", "probe.submission", "probe.smtps", "probe.http"}
    assert all(one["result"] == "good" for one in found.values()), found
    assert all(one["seen"].endswith("sent") for name, one in found.items() if name.startswith("probe")), found
    assert len(sandbox.inbox()) == before + 4
    with psycopg.connect(sandbox["SANDBOX_DATABASE_URL"]) as connection:
        left = connection.execute("SELECT count(*) FROM api_keys WHERE name LIKE 'doctor%'").fetchone()
    assert left == (0,), "its keys are revoked"


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


MAIN = [
    ("smuggling", "smtpd_forbid_bare_newline=no"),
    ("smuggling-exclusions", "smtpd_forbid_bare_newline_exclusions=$mynetworks 192.0.2.0/24"),
    ("pipelining", "smtpd_forbid_unauth_pipelining=no"),
    ("default-action", "milter_default_action=accept"),
    ("networks", "mynetworks=127.0.0.0/8"),
    ("auth", "smtpd_sasl_auth_enable=no"),
    ("auth-socket", "smtpd_sasl_path=private/auth"),
    ("plaintext-auth", "smtpd_tls_auth_only=no"),
    ("tls-versions", "smtpd_tls_protocols=>=TLSv1"),
    ("debug-peers", "debug_peer_list=192.0.2.1"),
    ("vrfy", "disable_vrfy_command=no"),
    ("client-share", "smtpd_client_connection_count_limit=200"),
    ("client-share", "smtpd_client_connection_count_limit=0"),
    ("client-exceptions", "smtpd_client_event_limit_exceptions=127.0.0.0/8"),
    ("flow-delay", "in_flow_delay=1s"),
    ("delay-reject", "smtpd_delay_reject=yes"),
    ("soft-bounce", "soft_bounce=yes"),
    ("bcc", "message_drop_headers=bcc, content-length, resent-bcc, return-path"),
    ("rewriting", "local_header_rewrite_clients=permit_inet_interfaces"),
    ("queue-ids", "enable_long_queue_ids=no"),
    ("header-limit", "header_size_limit=102400"),
    ("nul", "message_reject_characters="),
    ("size-limit", "message_size_limit=10240000"),
    ("recipient-limit", "smtpd_recipient_limit=1000"),
    ("compatibility", "compatibility_level=0"),
    ("relay", "smtpd_relay_restrictions=permit_mynetworks, permit_sasl_authenticated, defer"),
    ("relay", "smtpd_relay_restrictions=permit_sasl_authenticated"),
    ("relay", "smtpd_recipient_restrictions=permit"),
    ("relay", "smtpd_sender_restrictions="),
    ("hold", "smtpd_data_restrictions="),
    ("milter", "smtpd_milters="),
    ("milter", "smtpd_milters=inet:127.0.0.1:8892"),
    ("milter", "smtpd_milters=unix:/run/other.sock"),
    ("milter-timeouts", "milter_content_timeout=20s"),
    ("milter-timeouts", "milter_command_timeout=5s"),
]


@pytest.mark.parametrize(("check", "setting"), MAIN, ids=[setting for _, setting in MAIN])
def test_a_value_of_postfix_that_is_wrong(copied: Site, check: str, setting: str) -> None:
    planted(copied, "-e", setting)
    found = examined(copied, f"postfix.{check}")[f"postfix.{check}"]
    assert found.result is Result.PROBLEM, found
    mended(copied, found)
    assert examined(copied, f"postfix.{check}")[f"postfix.{check}"].result is Result.GOOD


OF_ONE_PORT = [
    ("default-action", "milter_default_action=accept"),
    ("smuggling", "smtpd_forbid_bare_newline=no"),
    ("relay", "smtpd_relay_restrictions=permit"),
    ("milter", "smtpd_milters="),
    ("hold", "smtpd_data_restrictions="),
    ("client-share", "smtpd_client_connection_count_limit=51"),
]


@pytest.mark.parametrize(("check", "setting"), OF_ONE_PORT, ids=[setting for _, setting in OF_ONE_PORT])
def test_a_value_that_is_wrong_at_one_port_only(sandbox: Sandbox, copied: Site, check: str, setting: str) -> None:
    service = f"127.0.0.1:{sandbox['SANDBOX_SMTPS_PORT']}/inet"
    planted(copied, "-P", f"{service}/{setting}")
    found = examined(copied, f"postfix.{check}")[f"postfix.{check}"]
    assert found.result is Result.PROBLEM, found
    mended(copied, found)
    assert examined(copied, f"postfix.{check}")[f"postfix.{check}"].result is Result.GOOD


def test_a_milter_with_an_action_of_its_own(copied: Site) -> None:
    setting = f"smtpd_milters={{ unix:{copied.config.milter.socket}, default_action=accept }}"
    planted(copied, "-e", setting)
    assert examined(copied, "postfix.milter")["postfix.milter"].result is Result.PROBLEM


@pytest.mark.case(67)
def test_a_chrooted_port_sees_another_path(sandbox: Sandbox, copied: Site) -> None:
    service = f"127.0.0.1:{sandbox['SANDBOX_SMTP_PORT']}/inet"
    planted(copied, "-F", f"{service}/chroot=y")
    found = examined(copied, "postfix.milter")["postfix.milter"]
    assert found.result is Result.PROBLEM, found


@pytest.mark.parametrize("setting", ["service", "default_process_limit"])
def test_a_port_with_fewer_processes_than_one_address_may_hold(sandbox: Sandbox, copied: Site, setting: str) -> None:
    service = f"127.0.0.1:{sandbox['SANDBOX_SMTP_PORT']}/inet"
    if setting == "service":
        planted(copied, "-F", f"{service}/process_limit=40")
    else:
        planted(copied, "-F", f"{service}/process_limit=-")
        planted(copied, "-e", "default_process_limit=40")
    found = examined(copied, "postfix.client-share")["postfix.client-share"]
    assert found.result is Result.PROBLEM, found
    assert "50 of 40" in found.seen
    mended(copied, found)
    assert examined(copied, "postfix.client-share")["postfix.client-share"].result is Result.GOOD


def test_a_port_with_any_number_of_processes_cannot_be_filled(sandbox: Sandbox, copied: Site) -> None:
    for name in ("SMTP", "SUBMISSION", "SMTPS"):
        planted(copied, "-F", f"127.0.0.1:{sandbox[f'SANDBOX_{name}_PORT']}/inet/process_limit=0")
    planted(copied, "-e", "smtpd_client_connection_count_limit=0")
    assert examined(copied, "postfix.client-share")["postfix.client-share"].result is Result.GOOD


def test_cleanup_without_room_for_the_largest_message(copied: Site) -> None:
    setting = "cleanup/unix/message_size_limit=41943040"
    planted(copied, "-P", setting)
    found = examined(copied, "postfix.cleanup-limit")["postfix.cleanup-limit"]
    assert found.result is Result.PROBLEM, found
    mended(copied, found)
    assert examined(copied, "postfix.cleanup-limit")["postfix.cleanup-limit"].result is Result.GOOD


def test_a_port_that_postfix_does_not_serve(sandbox: Sandbox, copied: Site) -> None:
    service = f"127.0.0.1:{sandbox['SANDBOX_SMTPS_PORT']}/inet"
    planted(copied, "-MX", service)
    found = examined(copied, "postfix.ports")["postfix.ports"]
    assert found.result is Result.PROBLEM
    assert sandbox["SANDBOX_SMTPS_PORT"] in found.seen


def test_files_that_postfix_cannot_read(copied: Site) -> None:
    (copied.postfix_dir / "main.cf").unlink()
    findings = examined(copied, "postfix")
    assert findings["postfix.configuration"].result is Result.PROBLEM
    assert {one.result for name, one in findings.items() if name != "postfix.configuration"} == {Result.SKIPPED}


def test_a_change_by_hand_and_a_change_not_yet_rendered(copied: Site) -> None:
    planted(copied, "-e", "smtpd_timeout=300s")
    found = examined(copied, "postfix.rendered")["postfix.rendered"]
    assert found.result is Result.WARNING
    assert "smtpd_timeout" in found.seen


CONFIGURED = [
    ("postfix.size-limit", lambda config: dataclasses.replace(config, size=Size(max_message_bytes=1_000_000))),
    ("postfix.recipient-limit", lambda config: dataclasses.replace(config, size=Size(max_recipients=7))),
    (
        "postfix.client-share",
        lambda config: dataclasses.replace(config, smtp=dataclasses.replace(config.smtp, client_share_percent=20)),
    ),
    ("postfix.milter", lambda config: dataclasses.replace(config, milter=Milter())),
    ("postfix.ports", lambda config: dataclasses.replace(config, smtp=Smtp(hostname="mail.sandbox.test"))),
    (
        "postfix.rendered",
        lambda config: dataclasses.replace(config, smtp=dataclasses.replace(config.smtp, hostname="new.sandbox.test")),
    ),
    (
        "tls.hostname",
        lambda config: dataclasses.replace(config, smtp=dataclasses.replace(config.smtp, hostname="new.sandbox.test")),
    ),
]


@pytest.mark.parametrize(("check", "change"), CONFIGURED, ids=[check for check, _ in CONFIGURED])
def test_a_configuration_that_was_changed_since(site: Site, check: str, change: Callable[[Config], Config]) -> None:
    found = examined(dataclasses.replace(site, config=change(site.config)), check)[check]
    assert found.result in {Result.PROBLEM, Result.WARNING}, found
    assert found.mend


def test_ports_that_are_services_of_another_instance(site: Site, tmp_path: Path) -> None:
    """The other instance is as careless as it likes; only what holds at our ports is judged."""
    shared = dataclasses.replace(site, postfix_dir=tmp_path)
    (tmp_path / "main.cf").write_text(
        f"queue_directory = {tmp_path}\nmynetworks = 0.0.0.0/0\nsmtpd_delay_reject = yes\n"
        "milter_default_action = accept\nmessage_size_limit = 1000000\nsoft_bounce = yes\n"
    )
    (tmp_path / "master.cf").write_text("smtp inet n - y - - smtpd\ncleanup unix n - y - 0 cleanup\n")
    ours = {
        line.partition(" =")[0]: line.partition(" =")[2].strip()
        for line in subprocess.run(
            ["postconf", "-c", str(site.postfix_dir), "-n"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    }
    for name in ("queue_directory", "config_directory", "data_directory", "syslog_name"):
        ours.pop(name)
    options = " ".join(f"-o {{{name} = {value}}}" for name, value in ours.items())
    with (tmp_path / "master.cf").open("a") as master:
        for port in (site.config.smtp.relay_port, site.config.smtp.submission_port, site.config.smtp.smtps_port):
            master.write(f"127.0.0.1:{port} inet n - n - 100 smtpd {options} ")
            master.write("-o soft_bounce=no -o cleanup_service_name=opensend-cleanup\n")
        master.write(f"opensend-cleanup unix n - n - 0 cleanup {options} -o message_size_limit=52428800\n")
    _let_rest(shared)
    findings = examined(shared, "postfix")
    wrong = {name for name, one in findings.items() if one.result in {Result.PROBLEM, Result.WARNING}}
    assert wrong == {"postfix.running"}, [findings[name] for name in wrong]
    assert findings["postfix.compatibility"].result is findings["postfix.rendered"].result is Result.SKIPPED


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
