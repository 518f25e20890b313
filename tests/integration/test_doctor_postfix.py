"""What `doctor` says of a Postfix that was given something else: faults planted in files as they are rendered."""

from __future__ import annotations

import datetime as dt
import fnmatch
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import pytest

from opensend_milter.config import Config, Milter, Size, Smtp, Tls
from opensend_milter.core.findings import Finding, Result, chosen, examine
from opensend_milter.host.examining import postfix as checks_postfix
from opensend_milter.host.examining.postconf import read_instance
from opensend_milter.host.examining.postfix_rules import rules
from opensend_milter.host.installing import extra_services, shipped_units
from opensend_milter.host.rendering.certificates import find_certificate, make_certificate
from opensend_milter.host.rendering.postfix import PostfixSite, pinned, render_postfix
from opensend_milter.host.rendering.postfix_files import Service

pytestmark = pytest.mark.skipif(not shutil.which("postconf", path="/usr/sbin"), reason="needs Postfix's postconf")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "doctor.md"
NAME = "mail.example.org"
BAD = {Result.PROBLEM, Result.WARNING}
SKIPPED = {"postfix.held", "postfix.running"}
"""They look at what runs, and nothing runs here."""


@dataclass(slots=True)
class Given:
    """The files of an instance, to be spoiled."""

    config: Config
    directory: Path

    def examined(self, *only: str) -> dict[str, Finding]:
        """Look at them as `doctor` does."""
        checks = [
            check
            for check in checks_postfix.checks(
                self.config, self.directory, cache(partial(read_instance, self.directory))
            )
            if check.name not in SKIPPED
        ]
        return {one.name: one for one in examine(checks, chosen(checks, only))}

    def wrong(self) -> dict[str, str]:
        """Return what is found wrong, as it is shown."""
        return {name: one.seen for name, one in self.examined().items() if one.result in BAD}

    def plant(self, *options: str) -> None:
        """Change a file as postconf does."""
        subprocess.run(["postconf", "-c", str(self.directory), *options], check=True)
        self.settle()

    def settle(self) -> None:
        """Let Postfix not wait a second for the end of what it takes for half written."""
        for name in ("main.cf", "master.cf"):
            os.utime(self.directory / name, (0, 0))

    def mend(self, finding: Finding) -> None:
        """Do what was proposed, without the reload: nothing runs from here."""
        for line in finding.mend.splitlines():
            assert line.startswith(f"postconf -c {self.directory} "), "here, and not on this machine"
            subprocess.run(line.partition(" && ")[0], shell=True, check=True)  # noqa: S602  # as an operator would
        self.settle()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, [NAME], now=dt.datetime.now(dt.UTC))
    return folder


@pytest.fixture
def config(tls: Path) -> Config:
    return Config(smtp=Smtp(host="127.0.0.1", hostname=NAME), tls=Tls(folder=tls))


@pytest.fixture
def given(config: Config, tmp_path: Path) -> Given:
    for name, content in render_postfix(config, site(config, tmp_path)).items():
        (tmp_path / name).write_text(content)
    found = Given(config, tmp_path)
    found.settle()
    return found


def site(config: Config, directory: Path) -> PostfixSite:
    return PostfixSite(
        config_dir=directory,
        queue_dir=directory / "queue",
        data_dir=directory / "data",
        log_file=None,
        certificate=find_certificate(config.tls, NAME),
        hostname=NAME,
    )


def test_nothing_is_wrong_with_what_is_rendered(given: Given) -> None:
    found = given.examined()
    assert {one.result for one in found.values()} == {Result.GOOD}, given.wrong()
    assert len(found) > 40


PLANTED = [
    ("smuggling", "smtpd_forbid_bare_newline=no"),
    ("smuggling-exclusions", "smtpd_forbid_bare_newline_exclusions=$mynetworks 192.0.2.0/24"),
    ("pipelining", "smtpd_forbid_unauth_pipelining=no"),
    ("commands", "smtpd_command_filter=pcre:/etc/postfix/commands"),
    ("commands", "smtpd_noop_commands=bdat"),
    ("networks", "mynetworks=127.0.0.0/8"),
    ("believed", "smtpd_authorized_xclient_hosts=0.0.0.0/0"),
    ("believed", "smtpd_authorized_xforward_hosts=$inet_interfaces"),
    ("believed", "milter_macro_defaults=auth_authen=00000000-0000-4000-8000-000000000000"),
    ("proxies", "smtpd_upstream_proxy_protocol=haproxy"),
    ("relay", "smtpd_relay_restrictions=permit_mynetworks, permit_sasl_authenticated, defer"),
    ("relay", "smtpd_relay_restrictions=permit_sasl_authenticated"),
    ("relay", "smtpd_recipient_restrictions=permit"),
    ("relay", "smtpd_sender_restrictions="),
    ("relay", "smtpd_sender_restrictions=permit_sasl_authenticated, permit, reject"),
    ("relay", "smtpd_client_restrictions=check_client_access static:OK"),
    ("relay", "smtpd_helo_restrictions=check_helo_access static:DISCARD"),
    ("relay", "smtpd_end_of_data_restrictions=check_sender_access static:DISCARD"),
    ("relay", "smtpd_etrn_restrictions="),
    ("relay", "smtpd_restriction_classes=reject_late"),
    ("auth", "smtpd_sasl_auth_enable=no"),
    ("auth", "smtpd_sasl_exceptions_networks=192.0.2.0/24"),
    ("auth-socket", "smtpd_sasl_path=private/auth"),
    ("auth-socket", "smtpd_sasl_type=cyrus"),
    ("anonymous", "smtpd_sasl_security_options="),
    ("anonymous", "smtpd_sasl_tls_security_options=noplaintext"),
    ("plaintext-auth", "smtpd_tls_auth_only=no"),
    ("default-action", "milter_default_action=accept"),
    ("milter", "smtpd_milters="),
    ("milter", "smtpd_milters=inet:127.0.0.1:8892"),
    ("milter", "smtpd_milters=unix:/run/other.sock"),
    ("milter", f"smtpd_milters=unix:{Milter().socket}, inet:192.0.2.1:8892"),
    ("milter", f"smtpd_milters={{ unix:{Milter().socket}, default_action=accept }}"),
    ("milter", f"smtpd_milters={{ unix:{Milter().socket} }} inet:192.0.2.1:8892"),
    ("milter", f"smtpd_milters={{ unix:{Milter().socket} }} {{ inet:192.0.2.1:8892 }}"),
    ("bypass", "receive_override_options=no_milters"),
    ("bypass", "receive_override_options=no_address_mappings, no_milters"),
    ("bypass", "smtpd_milter_maps=static:DISABLE"),
    ("bypass", "smtpd_proxy_filter=192.0.2.1:25"),
    ("bypass", "content_filter=smtp:[192.0.2.1]"),
    ("hold", "smtpd_data_restrictions="),
    ("hold", "smtpd_data_restrictions=permit, check_sender_access static:HOLD"),
    ("content", "header_checks=regexp:/etc/postfix/checks"),
    ("content", "mime_header_checks=regexp:/etc/postfix/checks"),
    ("content", "nested_header_checks=regexp:/etc/postfix/checks"),
    ("content", "body_checks=regexp:/etc/postfix/checks"),
    ("content", "milter_header_checks=regexp:/etc/postfix/checks"),
    ("content", "always_bcc=copies@example.net"),
    ("content", "sender_bcc_maps=static:copies@example.net"),
    ("content", "recipient_bcc_maps=static:copies@example.net"),
    ("content", "virtual_alias_maps=static:elsewhere@example.net"),
    ("way-out", "default_transport=smtp"),
    ("way-out", "relay_transport=smtp"),
    ("way-out", "virtual_transport=virtual"),
    ("way-out", "local_transport=local"),
    ("way-out", "transport_maps=static:smtp"),
    ("way-out", "relayhost=[192.0.2.1]"),
    ("way-out", "sender_dependent_default_transport_maps=static:smtp"),
    ("way-out", "sender_dependent_relayhost_maps=static:[192.0.2.1]"),
    ("way-out", "mydestination=example.net"),
    ("way-out", "relay_domains=example.net"),
    ("way-out", "virtual_mailbox_domains=example.net"),
    ("way-out", "virtual_alias_domains=example.net"),
    ("users", "authorized_submit_users=static:anyone"),
    ("users", "authorized_mailq_users=static:anyone"),
    ("users", "authorized_flush_users=static:anyone"),
    ("tls-versions", "smtpd_tls_protocols=>=TLSv1"),
    ("tls-versions", "smtpd_tls_mandatory_protocols=>=TLSv1"),
    ("ciphers", "smtpd_tls_ciphers=null"),
    ("ciphers", "smtpd_tls_mandatory_ciphers=export"),
    ("ciphers", "tls_ssl_options=LEGACY_SERVER_CONNECT"),
    ("debug-peers", "debug_peer_list=192.0.2.1"),
    ("tls-log", "smtpd_tls_loglevel=4"),
    ("notices", "notify_classes=protocol, policy"),
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
    ("milter-timeouts", "milter_content_timeout=20s"),
    ("milter-timeouts", "milter_command_timeout=5s"),
]


@pytest.mark.parametrize(("check", "setting"), PLANTED, ids=[setting for _, setting in PLANTED])
def test_a_value_that_is_wrong_is_named_and_nothing_else_is(given: Given, check: str, setting: str) -> None:
    parameter = setting.partition("=")[0]
    given.plant("-e", setting)
    found = given.examined()
    wrong = {name: one for name, one in found.items() if one.result in BAD}
    assert wrong.keys() == {f"postfix.{check}", "postfix.rendered"}, wrong
    assert wrong[f"postfix.{check}"].result is Result.PROBLEM
    assert parameter in wrong[f"postfix.{check}"].seen
    assert wrong["postfix.rendered"].seen == f"not as the configuration says: {parameter}"
    given.mend(wrong[f"postfix.{check}"])
    assert given.examined(f"postfix.{check}")[f"postfix.{check}"].result is Result.GOOD


def test_each_rule_has_a_planted_fault_for_each_of_its_parameters(config: Config) -> None:
    ruled = {(rule.name, parameter) for rule in rules(config) for parameter in rule.wanted}
    assert ruled - {(check, setting.partition("=")[0]) for check, setting in PLANTED} == set()


def test_each_parameter_that_could_open_a_door_is_in_the_documentation(config: Config) -> None:
    page = PAGE.read_text()
    rows = [
        f"| `postfix.{rule.name}` | {', '.join(f'`{name}`' for name in rule.wanted)} |"
        for rule in rules(config)
        if rule.security
    ]
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize("setting", ["tls_medium_cipherlist=ALL:eNULL", "cleanup_replace_stray_cr_lf=no"])
def test_what_is_left_at_its_default_is_named_where_it_is_not(given: Given, setting: str) -> None:
    given.plant("-e", setting)
    assert given.wrong() == {"postfix.rendered": f"not as the configuration says: {setting.partition('=')[0]}"}


OF_ONE_PORT = [
    ("default-action", "milter_default_action=accept"),
    ("smuggling", "smtpd_forbid_bare_newline=no"),
    ("relay", "smtpd_relay_restrictions=permit"),
    ("believed", "smtpd_authorized_xclient_hosts=0.0.0.0/0"),
    ("bypass", "receive_override_options=no_milters"),
    ("milter", "smtpd_milters="),
    ("hold", "smtpd_data_restrictions="),
    ("client-share", "smtpd_client_connection_count_limit=51"),
]


@pytest.mark.parametrize(("check", "setting"), OF_ONE_PORT, ids=[setting for _, setting in OF_ONE_PORT])
def test_a_value_that_is_wrong_at_one_port_only(given: Given, check: str, setting: str) -> None:
    given.plant("-P", f"127.0.0.1:465/inet/{setting}")
    parameter, found = setting.partition("=")[0], given.examined()
    assert parameter in found[f"postfix.{check}"].seen
    assert found["postfix.rendered"].seen == f"not as the configuration says: 127.0.0.1:465/inet/{parameter}"
    given.mend(found[f"postfix.{check}"])
    assert given.wrong() == {}


def test_our_milter_may_have_settings_of_its_own(given: Given) -> None:
    given.plant("-e", f"smtpd_milters={{ unix:{Milter().socket}, default_action=tempfail, command_timeout=40s }}")
    assert given.wrong() == {"postfix.rendered": "not as the configuration says: smtpd_milters"}


def test_a_way_out_that_is_one_programs_own(given: Given) -> None:
    given.plant("-P", "rewrite/unix/default_transport=smtp")
    wrong = given.wrong()
    assert wrong.keys() == {"postfix.way-out", "postfix.rendered"}
    assert "rewrite/unix/default_transport" in wrong["postfix.rendered"]


@pytest.mark.case(67)
def test_a_chrooted_port_sees_another_path(given: Given) -> None:
    given.plant("-F", "127.0.0.1:587/inet/chroot=y")
    assert {"postfix.milter", "postfix.rendered"} == given.wrong().keys()


@pytest.mark.parametrize(
    ("service", "program", "shown"),
    [
        ("25", "smtpd", "25 is no port of the configuration"),
        ("10025", "qmqpd", "10025 is no port of the configuration"),
        ("127.0.0.1:587", "smtpd -v", "127.0.0.1:587 is served by smtpd -v"),
        ("127.0.0.1:587", "postscreen", "127.0.0.1:587 is served by postscreen"),
    ],
)
def test_another_program_or_one_more_port(given: Given, service: str, program: str, shown: str) -> None:
    given.plant("-M", f"{service}/inet={service} inet n - n - 100 {program}")
    wrong = given.wrong()
    assert wrong["postfix.programs"] == shown
    assert f"{service}/inet" in wrong["postfix.rendered"]


def test_a_program_that_is_given_something_else(given: Given) -> None:
    given.plant("-F", "qmgr/unix/command=qmgr -v")
    assert given.wrong() == {"postfix.rendered": "not as the configuration says: qmgr/unix"}


@pytest.mark.parametrize("setting", ["service", "default_process_limit"])
def test_a_port_with_fewer_processes_than_one_address_may_hold(given: Given, setting: str) -> None:
    if setting == "service":
        given.plant("-F", "127.0.0.1:587/inet/process_limit=40")
    else:
        given.plant("-F", "127.0.0.1:587/inet/process_limit=-")
        given.plant("-e", "default_process_limit=40")
    found = given.examined("postfix.client-share")["postfix.client-share"]
    assert found.result is Result.PROBLEM, found
    assert "50 of 40" in found.seen
    given.mend(found)
    assert given.examined("postfix.client-share")["postfix.client-share"].result is Result.GOOD


def test_a_port_with_any_number_of_processes_cannot_be_filled(given: Given) -> None:
    for port in (2587, 587, 465):
        given.plant("-F", f"127.0.0.1:{port}/inet/process_limit=0")
    given.plant("-e", "smtpd_client_connection_count_limit=0")
    assert given.examined("postfix.client-share")["postfix.client-share"].result is Result.GOOD


def test_cleanup_without_room_for_the_largest_message(given: Given) -> None:
    given.plant("-P", "cleanup/unix/message_size_limit=41943040")
    found = given.examined("postfix.cleanup-limit")["postfix.cleanup-limit"]
    assert found.result is Result.PROBLEM, found
    given.mend(found)
    assert given.wrong() == {}


def test_a_port_that_postfix_does_not_serve(given: Given) -> None:
    given.plant("-MX", "127.0.0.1:465/inet")
    wrong = given.wrong()
    assert wrong["postfix.ports"] == "no service in master.cf for smtp.smtps_port 465"
    assert wrong["postfix.rendered"] == "not as the configuration says: 127.0.0.1:465/inet"


def test_files_that_postfix_cannot_read(given: Given) -> None:
    (given.directory / "main.cf").unlink()
    findings = given.examined()
    assert findings["postfix.configuration"].result is Result.PROBLEM
    assert {one.result for name, one in findings.items() if name != "postfix.configuration"} == {Result.SKIPPED}


CHANGED: list[tuple[str, Callable[[Config], Config]]] = [
    ("size-limit", lambda config: replace(config, size=Size(max_message_bytes=1_000_000))),
    ("recipient-limit", lambda config: replace(config, size=Size(max_recipients=7))),
    ("client-share", lambda config: replace(config, smtp=replace(config.smtp, client_share_percent=20))),
    ("milter", lambda config: replace(config, milter=Milter(socket=Path("/run/other.sock")))),
    ("ports", lambda config: replace(config, smtp=replace(config.smtp, relay_port=2588))),
    ("rendered", lambda config: replace(config, smtp=replace(config.smtp, hostname="new.example.org"))),
]


@pytest.mark.parametrize(("check", "change"), CHANGED, ids=[check for check, _ in CHANGED])
def test_a_configuration_that_was_changed_since(given: Given, check: str, change: Callable[[Config], Config]) -> None:
    given.config = change(given.config)
    found = given.examined(f"postfix.{check}")[f"postfix.{check}"]
    assert found.result in BAD, found
    assert found.mend


# ---------------------------------------------------------------- balancers


def test_behind_balancers_the_unit_keeps_others_away(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_units, "UNIT_DIR", tmp_path / "units")
    given.config = replace(given.config, smtp=replace(given.config.smtp, proxies="192.0.2.0/28"))
    for name, content in render_postfix(given.config, site(given.config, given.directory)).items():
        (given.directory / name).write_text(content)
    given.settle()
    found = given.examined("postfix.proxies")["postfix.proxies"]
    assert (found.result, "proxies.conf does not keep all but 192.0.2.0/28" in found.seen) == (Result.WARNING, True)
    unit = shipped_units.for_balancers_only("192.0.2.0/28")
    unit.path.parent.mkdir(parents=True)
    unit.path.write_bytes(unit.content)
    assert given.wrong() == {}


# ---------------------------------------------------------------- services of another instance


@pytest.fixture
def shared(config: Config, tmp_path: Path) -> Given:
    """Our services beside others, in an instance that is as careless as it likes."""
    (tmp_path / "main.cf").write_text(
        f"queue_directory = {tmp_path}\nmynetworks = 0.0.0.0/0\nsmtpd_delay_reject = yes\ndefault_transport = smtp\n"
        "milter_default_action = accept\nmessage_size_limit = 1000000\nsoft_bounce = yes\n"
        "smtpd_authorized_xclient_hosts = 0.0.0.0/0\nalways_bcc = root\n"
    )
    (tmp_path / "master.cf").write_text("smtp inet n - y - - smtpd -v\ncleanup unix n - y - 0 cleanup\n")
    found = Given(config, tmp_path)
    found.settle()
    for entry in ours_beside(found):
        found.plant("-M", f"{entry.key}={entry.line()}")
    return found


def ours_beside(shared: Given) -> list[Service]:
    beside = replace(site(shared.config, shared.directory), syslog_name="postfix-opensend")
    return extra_services.services(shared.config, beside, shared.directory)


def test_of_another_instance_only_what_holds_at_our_ports_is_judged(shared: Given) -> None:
    assert shared.wrong() == {}
    of_theirs = {name for name, one in shared.examined().items() if one.result is Result.SKIPPED}
    assert of_theirs == {"postfix.compatibility", "postfix.way-out", "postfix.users"}


def test_what_another_instance_sets_later_is_named(shared: Given) -> None:
    """What our services do not override reaches them."""
    shared.plant("-e", "smtpd_forbidden_commands=")
    named = shared.wrong()["postfix.rendered"]
    assert re.findall(r"([^ ,]+)/smtpd_forbidden_commands", named) == [
        f"127.0.0.1:{port}/inet" for port in (2587, 465, 587)
    ]


@pytest.mark.parametrize(
    ("check", "setting"),
    [
        ("believed", "127.0.0.1:587/inet/smtpd_authorized_xclient_hosts=0.0.0.0/0"),
        ("content", "opensend-cleanup/unix/always_bcc=root"),
    ],
)
def test_an_override_of_ours_that_is_another(shared: Given, check: str, setting: str) -> None:
    shared.plant("-P", setting)
    wrong = shared.wrong()
    assert wrong.keys() == {f"postfix.{check}", "postfix.rendered"}
    assert setting.partition("=")[0] in wrong["postfix.rendered"]
    assert shared.examined(f"postfix.{check}")[f"postfix.{check}"].mend == "opensend-milter install --apply"


def test_services_of_another_instance_must_not_believe_the_proxy_protocol(shared: Given) -> None:
    shared.config = replace(shared.config, smtp=replace(shared.config.smtp, proxies="192.0.2.0/28"))
    for entry in ours_beside(shared):
        shared.plant("-M", f"{entry.key}={entry.line()}")
    wrong = shared.wrong()
    assert wrong.keys() == {"postfix.proxies"}
    assert "smtpd_upstream_proxy_protocol = haproxy, and nothing keeps others from it" in wrong["postfix.proxies"]


# ---------------------------------------------------------------- what was judged


def judged() -> Iterator[str]:
    """Return the patterns of docs/doctor.md: parameters that open no door."""
    table = PAGE.read_text().partition("## What of postconf(5) was judged")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


def test_every_parameter_of_postfix_was_judged() -> None:
    """Each is said in main.cf, or stands in the table of those that need not be; a new Postfix has new ones."""
    done = subprocess.run(["postconf", "-d"], check=True, capture_output=True, text=True)
    names = {line.partition(" =")[0] for line in done.stdout.splitlines()}
    said = set(re.findall(r"^(\w+) =", (ROOT / "postfix" / "main.cf.in").read_text(), re.MULTILINE))
    patterns = list(judged())
    assert sorted(one for one in names - said if not any(fnmatch.fnmatchcase(one, each) for each in patterns)) == []
    assert [one for one in said if any(fnmatch.fnmatchcase(one, each) for each in patterns if "*" not in each)] == []
    assert pinned().keys() <= said
