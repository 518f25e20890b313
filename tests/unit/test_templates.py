"""Rendering: every value finds its place, and none becomes more than a value."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from pathlib import Path

import pytest

from opensend_milter.config import Auth, Config, Database, Milter, Size, Smtp
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.certificates import CertificatePair
from opensend_milter.host.rendering.dovecot import (
    DovecotSite,
    Version,
    connection_parameters,
    render_dovecot,
)
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from opensend_milter.host.rendering.templates import render

PAIR = CertificatePair(
    certificate=Path("/etc/ssl/mail.pem"),
    key=Path("/etc/ssl/mail.key"),
    expires_at=dt.datetime.max.replace(tzinfo=dt.UTC),
)
SITE = PostfixSite(
    config_dir=Path("/etc/postfix-opensend"),
    queue_dir=Path("/var/spool/postfix-opensend"),
    data_dir=Path("/var/lib/postfix-opensend"),
    log_file=Path("/var/log/opensend/postfix.log"),
    certificate=PAIR,
    hostname="mail.example.org",
)
DOVECOT = DovecotSite(
    config_dir=Path("/etc/opensend-dovecot"),
    base_dir=Path("/run/opensend-dovecot"),
    state_dir=Path("/var/lib/opensend-dovecot"),
    log_file=None,
)
DATABASE = Database(url="postgresql://someone:secret@db.example.org:5433/mail?sslmode=verify-full")


def settings(text: str) -> dict[str, str]:
    """Read main.cf as Postfix does: comments off, continuation lines joined."""
    lines = re.sub(r"\n[ \t]+", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found = [line.split("=", 1) for line in lines.splitlines() if line.strip()]
    names = [name.strip() for name, _ in found]
    assert len(names) == len(set(names)), "a setting is given twice"
    return {name.strip(): value.strip() for name, value in found}


def main_cf(config: Config, site: PostfixSite = SITE) -> dict[str, str]:
    return settings(render_postfix(config, site)["main.cf"])


def test_an_unknown_name_in_a_template_is_a_fault() -> None:
    with pytest.raises(KeyError):
        render("a = @A@\nb = @B@\n", {"A": "1"})


def test_a_value_without_a_name_in_the_template_is_a_fault() -> None:
    with pytest.raises(KeyError):
        render("a = @A@\n", {"A": "1", "B": "2"})


def test_an_entry_with_a_value_that_is_off_goes_with_its_continuation_lines() -> None:
    template = "@A@ inet\n  -o x=@B@\n# about the next\nkept = @B@\n"
    assert render(template, {"A": None, "B": "1"}) == "# about the next\nkept = 1\n"


@pytest.mark.parametrize("value", ["a\nb", "a b", "$x", "a#b", "a;b", 'a"b', "a\0b", "", "{x}", "a,b", "@B@"])
def test_a_value_that_is_more_than_a_value_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^a: cannot be written"):
        render("a = @A@\n", {"A": value})


def test_a_line_break_in_the_host_name_is_refused() -> None:
    config = Config(smtp=Smtp(hostname="mail.example.org\nmynetworks = 0.0.0.0/0"))
    with pytest.raises(ConfigError, match="hostname"):
        render_postfix(config, SITE)


def test_values_of_the_configuration_arrive_in_main_cf() -> None:
    config = Config(
        smtp=Smtp(
            hostname="smtp.example.org",
            client_share_percent=30,
            client_logins_per_minute=11,
            client_messages_per_minute=12,
        ),
        size=Size(max_message_bytes=1_000_000, max_recipients=7),
        milter=Milter(socket=Path("/run/m.sock")),
        auth=Auth(socket=Path("/run/a.sock")),
    )
    found = main_cf(config)
    assert found["myhostname"] == "smtp.example.org"
    assert found["message_size_limit"] == "1000000"
    assert found["smtpd_recipient_limit"] == "7"
    assert found["smtpd_client_connection_count_limit"] == "30"
    assert found["smtpd_client_auth_rate_limit"] == "11"
    assert found["smtpd_client_message_rate_limit"] == "12"
    assert found["smtpd_milters"] == "unix:/run/m.sock"
    assert found["smtpd_sasl_path"] == "/run/a.sock"
    assert found["smtpd_tls_chain_files"] == "/etc/ssl/mail.key, /etc/ssl/mail.pem"
    assert found["inet_protocols"] == "ipv4"
    assert "message_size_limit=1250000" in render_postfix(config, SITE)["master.cf"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("milter_default_action", "tempfail"),
        ("smtpd_data_restrictions", "check_sender_access static:HOLD"),
        ("smtpd_forbid_bare_newline", "normalize"),
        ("in_flow_delay", "0"),
        ("message_drop_headers", ""),
        ("local_header_rewrite_clients", ""),
        ("mynetworks", ""),
        ("enable_long_queue_ids", "yes"),
        ("smtpd_tls_auth_only", "yes"),
        ("smtpd_client_connection_count_limit", "50"),
        ("smtpd_client_event_limit_exceptions", ""),
        ("smtpd_relay_restrictions", "permit_sasl_authenticated, reject"),
    ],
)
def test_what_safety_hangs_on_is_said(name: str, value: str) -> None:
    assert main_cf(Config())[name] == value


def test_one_address_may_hold_one_connection_where_its_share_is_less() -> None:
    found = main_cf(Config(smtp=Smtp(client_share_percent=1)), replace(SITE, smtpd_processes=20))
    assert found["smtpd_client_connection_count_limit"] == "1"


def test_the_host_name_of_the_machine_stands_in() -> None:
    assert main_cf(Config())["myhostname"] == "mail.example.org"


def test_without_a_log_file_postfix_logs_to_syslog() -> None:
    of_a_file = {"maillog_file", "maillog_file_prefixes", "postlogd_watchdog_timeout"}
    assert not of_a_file & set(main_cf(Config(), replace(SITE, log_file=None)))
    assert of_a_file <= set(main_cf(Config(), SITE))


def test_each_port_can_be_off() -> None:
    config = Config(smtp=Smtp(host="127.0.0.1", relay_port=0, submission_port=2525, smtps_port=0))
    master = render_postfix(config, SITE)["master.cf"]
    assert re.findall(r"^\S+ inet", master, re.MULTILINE) == ["127.0.0.1:2525 inet"]
    assert master.count("milter_macro_daemon_name=") == 1
    assert "wrappermode" not in master


def test_every_listener_names_itself_to_the_milter() -> None:
    master = render_postfix(Config(), SITE)["master.cf"]
    assert re.findall(r"milter_macro_daemon_name=(\w+)", master) == ["relay", "submission", "smtps"]


@pytest.mark.parametrize(("host", "listener", "protocols"), [("::1", "[::1]:587", "ipv6"), ("::", "[::]:587", "all")])
def test_an_address_of_ipv6_stands_in_brackets(host: str, listener: str, protocols: str) -> None:
    config = Config(smtp=Smtp(host=host))
    assert f"\n{listener} inet" in render_postfix(config, SITE)["master.cf"]
    assert main_cf(config)["inet_protocols"] == protocols


def test_without_a_certificate_nothing_is_rendered() -> None:
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        render_postfix(Config(), replace(SITE, certificate=None))


def test_plaintext_auth_without_a_certificate_turns_tls_off() -> None:
    config = Config(smtp=Smtp(host="127.0.0.1", plaintext_auth=True))
    files = render_postfix(config, replace(SITE, certificate=None))
    found = settings(files["main.cf"])
    assert (found["smtpd_tls_security_level"], found["smtpd_tls_auth_only"]) == ("none", "no")
    assert "smtpd_tls_chain_files" not in found
    assert "wrappermode" not in files["master.cf"]


def test_dovecot_2_3_asks_with_the_hash() -> None:
    files = render_dovecot(Config(database=DATABASE), DOVECOT)
    assert set(files) == {"dovecot.conf", "dovecot-sql.conf"}
    sql = files["dovecot-sql.conf"]
    assert "opensend_milter.key_id('%{sha256:password}')" in sql
    assert "user=someone password=secret" in sql
    assert "host=db.example.org" in sql
    assert "sslmode=verify-full" in sql
    assert "args = /etc/opensend-dovecot/dovecot-sql.conf" in files["dovecot.conf"]


@pytest.mark.parametrize(
    ("version", "file", "sign"), [("2.3", "dovecot-sql.conf", "="), ("2.4", "dovecot.conf", " = ")]
)
def test_dovecot_gives_a_dead_network_up(version: Version, file: str, sign: str) -> None:
    """As soon as all others do, unless the URL says when."""
    for url, expected in ((DATABASE.url, "5000"), (f"{DATABASE.url}&tcp_user_timeout=60000", "60000")):
        rendered = render_dovecot(Config(database=Database(url=url)), replace(DOVECOT, version=version))[file]
        assert re.findall(rf"tcp_user_timeout{sign}(\d+)", rendered) == [expected]
        assert f"keepalives_idle{sign}5" in rendered


@pytest.mark.case(68)
def test_dovecot_2_4_hexlifies() -> None:
    files = render_dovecot(Config(database=DATABASE), replace(DOVECOT, version="2.4"))
    assert set(files) == {"dovecot.conf"}
    assert "%{password | sha256 | hexlify}" in files["dovecot.conf"]
    assert "\n    password = secret\n" in files["dovecot.conf"]


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_dovecot_never_writes_a_key(version: Version) -> None:
    main = render_dovecot(Config(database=DATABASE), replace(DOVECOT, version=version))["dovecot.conf"]
    assert "auth_verbose_passwords = no" in main
    assert "auth_debug_passwords = no" in main


def test_dovecot_logs_in_as_its_own_role(tmp_path: Path) -> None:
    (tmp_path / "opensend_dovecot_auth").write_text("s3cret\n")
    found = connection_parameters(replace(DATABASE, password_dir=tmp_path))
    assert (found["user"], found["password"]) == ("opensend_dovecot_auth", "s3cret")


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opensend_dovecot_auth"):
        connection_parameters(replace(DATABASE, password_dir=tmp_path))


@pytest.mark.parametrize("password", ["a b", "a'b", "a\\b", 'a"b', "a#b", "a\nb", "a}b", "a$b", "ä"])
def test_a_password_that_dovecot_cannot_hold_is_refused_and_not_shown(tmp_path: Path, password: str) -> None:
    (tmp_path / "opensend_dovecot_auth").write_text(password)
    with pytest.raises(ConfigError) as caught:
        connection_parameters(replace(DATABASE, password_dir=tmp_path))
    assert password not in str(caught.value)


def test_a_url_without_a_user_is_refused() -> None:
    with pytest.raises(ConfigError, match="no user"):
        connection_parameters(Database())
