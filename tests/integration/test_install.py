"""Installing beside an existing Postfix: the plan changes nothing, the undo leaves nothing, both take mail."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator

import pytest

from opensend_milter.host.rendering.certificates import make_certificate
from tests.integration.copied_system import CopiedSystem, copied_system

MAIN = """\
# The administrator's own file,\twith odd  spaces
compatibility_level = 3.6
myhostname = old.example.org
mydestination = $myhostname, localhost
inet_interfaces = loopback-only
inet_protocols = ipv4
alias_maps =
virtual_alias_maps = texthash:/etc/postfix/virtual
smtpd_recipient_restrictions = permit_mynetworks,
    reject_unauth_destination
smtpd_banner = $myhostname ESMTP old
always_bcc = root@localhost
header_checks = regexp:/etc/postfix/header_checks
soft_bounce = yes
maillog_file = /var/log/postfix-old.log"""
"""Without a line end at its end: nobody may add one."""
CONFIG = """\
smtp: {{host: 127.0.0.1, hostname: relay.example.org}}
tls: {{folder: /etc/ssl/mail}}
database: {{url: '{url}'}}
delivery: {{courier: file}}
"""
LEFT_BY_THE_SYSTEM = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")}


@pytest.fixture
def system() -> Iterator[CopiedSystem]:
    with copied_system() as made:
        furnish(made)
        yield made


def furnish(system: CopiedSystem, url: str = "postgresql:///mail?host=/var/run/postgresql") -> None:
    """Make it a host with a Postfix that has its own main.cf, master.cf, maps and services."""
    system.write("/etc/postfix/main.cf", MAIN, 0o640)
    master = system.read("/etc/postfix/master.cf")
    own = "\n# Ours since 2009\n127.0.0.1:10026 inet n - n - 5 smtpd\n  -o content_filter=\n  -o smtpd_milters="
    system.write("/etc/postfix/master.cf", master.replace("smtp      inet  n       -       y", "smtp inet n - n") + own)
    system.write("/etc/postfix/virtual", "someone@old.example.org root\n", 0o600)
    system.write("/etc/postfix/header_checks", "/^X-Never:/ REJECT\n")
    for name in ("main.cf", "master.cf"):
        # What was written within the last second Postfix takes for half written, and waits.
        os.utime(system.root / "etc/postfix" / name, (0, 0))
    tls = system.root / "etc/ssl/mail"
    tls.mkdir()
    made = make_certificate(tls, ["relay.example.org"], now=dt.datetime.now(dt.UTC))
    system.write("/etc/dovecot/private/dovecot.pem", made.pair.certificate.read_text())
    system.write("/etc/dovecot/private/dovecot.key", made.pair.key.read_text(), 0o600)
    system.write(CONFIG_PATH, CONFIG.format(url=url))


CONFIG_PATH = "/etc/opensend-milter/opensend-milter.yaml"
OPTIONS = [(), ("--mode", "services", "--dovecot", "existing")]


@pytest.mark.case(66)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_undo_leaves_the_system_as_it_was(system: CopiedSystem, options: tuple[str, ...]) -> None:
    before = system.written()
    plan = system.install_from_outside("--plan", *options)
    assert not system.changes(before), "the plan changed something"
    assert "nothing was changed" in plan.stdout
    system.install_from_outside("--apply", *options)
    applied = system.changes(before)
    assert "/etc/opensend-milter/passwords/opensend_milter" in applied
    assert ("/etc/postfix/master.cf" in applied) == ("services" in options)
    assert "/etc/postfix/main.cf" not in applied
    again = system.written()
    assert "nothing to do" in system.install_from_outside("--apply", *options).stdout
    assert not system.changes(again), "the second apply changed something"
    undone = system.install_from_outside("--undo")
    assert system.changes(before) == LEFT_BY_THE_SYSTEM
    assert all(path in undone.stdout for path in LEFT_BY_THE_SYSTEM), "what stays is named"


def test_a_console_that_is_configured_no_more_goes(system: CopiedSystem) -> None:
    before, off = system.written(), system.read(CONFIG_PATH)
    units = {f"opensend-console.{kind}" for kind in ("service", "socket")}
    is_on, listens, acts = (
        "opensend-milter.target.d/console.conf",
        "opensend-console.socket.d/listen.conf",
        "opensend-console.service.d/actions.conf",
    )
    for settings, there in (
        ("", set[str]()),
        (
            "console: {socket: /run/opensend-console/console.sock, public_url: 'https://c.example.org'}",
            units | {is_on, listens},
        ),
        ("console: {port: 8026, actions: true}", units | {is_on, acts}),
        ("console: {port: 8026}", units | {is_on}),
        ("", set[str]()),
    ):
        system.write(CONFIG_PATH, f"{off}{settings}\n" if settings else off)
        system.install_from_outside("--apply")
        folder = system.root / "etc/systemd/system"
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {name for name in found if "console" in name} == there
        assert "nothing to do" in system.install_from_outside("--apply").stdout
    status = system.install_from_outside("--status").stdout
    assert not re.search(r"console\.conf|listen\.conf|actions\.conf|console\.service(?!\.d)", status)
    system.install_from_outside("--undo")
    # It was written since, the same as before.
    assert system.changes(before) - {CONFIG_PATH} == LEFT_BY_THE_SYSTEM
    assert system.read(CONFIG_PATH) == off
