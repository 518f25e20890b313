"""Before anything is done: what stands in the way is said, with its mend."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from opensend_milter.config import Auth, Config, Database, Milter, Smtp, Tls
from opensend_milter.host.installing import apply as install, preflight
from opensend_milter.host.installing.blueprint import DOVECOT, EXISTING_PASSDB, Blueprint, Choice
from opensend_milter.host.installing.plan import Fault, File, Plan, Root, SymbolicLink
from opensend_milter.host.rendering.certificates import make_certificate
from opensend_milter.host.rendering.dovecot import PASSDB_FILE
from tests.integration.small_system import small_system

FOLDER = Path("/etc/ssl/mail")
GOOD = Config(
    database=Database(url="postgresql:///mail?host=/run/postgresql"),
    smtp=Smtp(host="127.0.0.1", hostname="relay.example.org"),
    tls=Tls(folder=FOLDER),
)
PROGRAMS = ("postfix", "postconf", "dovecot", "doveconf", "systemd-sysusers", "userdel", "groupdel")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host where nothing is in the way."""
    root = small_system(tmp_path)
    (root / "usr/sbin").mkdir(parents=True)
    for name in PROGRAMS:
        (root / "usr/sbin" / name).touch()
    driver = root / "usr/lib/dovecot/modules/auth/libdriver_pgsql.so"
    driver.parent.mkdir(parents=True)
    driver.touch()
    (root / "etc/ssl/mail").mkdir(parents=True)
    make_certificate(root / "etc/ssl/mail", ["relay.example.org"], now=dt.datetime.now(dt.UTC))
    return root


def plan_of(root: Path, config: Config = GOOD, choice: Choice | None = None) -> Plan:
    return preflight.draw_up(config, b"", choice or Choice(), Root(root))


def test_nothing_is_in_the_way(root: Path) -> None:
    plan = plan_of(root)
    assert plan.faults == ()
    assert len(plan.steps) > 30


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is wrong."""

    expected: str
    config: Config = GOOD
    choice: Choice = field(default_factory=Choice)
    spoil: Callable[[Path], object] = lambda _: None


def another_key(root: Path) -> None:
    other = root / "other"
    other.mkdir()
    make_certificate(other, ["relay.example.org"], now=dt.datetime.now(dt.UTC))
    shutil.copy(other / "privkey.pem", root / "etc/ssl/mail/privkey.pem")


def listener(line: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        with (root / "etc/postfix/master.cf").open("a") as master:
            master.write(f"{line} inet n - n - - smtpd\n")
        os.utime(root / "etc/postfix/master.cf", (0, 0))

    return spoil


def gone(name: str, root: Path) -> None:
    (root / "usr/sbin" / name).unlink()


def without_account(name: str, root: Path) -> None:
    passwd = root / "etc/passwd"
    lines = passwd.read_text().splitlines(keepends=True)
    passwd.write_text("".join(line for line in lines if not line.startswith(f"{name}:")))


CASES = [
    *(Case(f"the program {name} is missing", spoil=partial(gone, name)) for name in PROGRAMS),
    Case("Dovecot cannot ask PostgreSQL", spoil=lambda root: shutil.rmtree(root / "usr/lib")),
    Case("the user dovenull is missing", spoil=partial(without_account, "dovenull")),
    Case("the user postfix is missing", spoil=partial(without_account, "postfix")),
    Case("var/lib: is not there", spoil=lambda root: shutil.rmtree(root / "var")),
    Case("tls.certificate: expected a certificate", replace(GOOD, tls=Tls())),
    Case("fullchain.pem: No such file", replace(GOOD, tls=Tls(folder=Path("/nowhere")))),
    Case("is not the key of the first certificate", spoil=another_key),
    Case("/acme.json: No such file", replace(GOOD, tls=Tls(acme_json=Path("/acme.json")))),
    Case("smtp.submission_port: 587 is the port of submission in", spoil=listener("submission")),
    Case("smtp.relay_port: 2587 is the port of 127.0.0.1:2587 in", spoil=listener("127.0.0.1:2587")),
    Case("smtp.smtps_port: 465 is the port of smtps in", replace(GOOD, smtp=Smtp(host="::")), spoil=listener("smtps")),
    Case("milter.socket: expected /var/spool/postfix-opensend", replace(GOOD, milter=Milter(socket=Path("/x")))),
    Case("auth.socket: expected /var/spool/postfix-opensend", replace(GOOD, auth=Auth(socket=Path("/x")))),
    Case("auth.protocol: saslauthd is nothing", replace(GOOD, auth=Auth(protocol="saslauthd"))),
    Case("database.password_dir: expected", replace(GOOD, database=Database(password_dir=Path("/x")))),
    Case("smtp.proxies: with --mode services", replace(GOOD, smtp=replace(GOOD.smtp, proxies="192.0.2.0/28")),
         Choice(mode="services")),
    Case("does not include conf.d", choice=Choice(dovecot="existing"),
         spoil=lambda root: (root / "etc/dovecot/dovecot.conf").write_text("protocols =\n")),
    Case("etc/postfix/main.cf: is not there", choice=Choice(mode="services"),
         spoil=lambda root: (root / "etc/postfix/main.cf").unlink()),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.expected)
def test_what_is_in_the_way_is_said_with_its_mend(root: Path, case: Case) -> None:
    case.spoil(root)
    faults = plan_of(root, case.config, case.choice).faults
    assert any(case.expected in fault.what for fault in faults), faults
    assert all(fault.mend for fault in faults)


def test_what_is_wrong_in_the_database_stands_in_the_way_too(root: Path) -> None:
    """Who asked the database says so; the steps are shown all the same."""
    fault = Fault(what="opensend_worker: the password is not in /etc/opensend-milter/passwords", mend="copy it")
    plan = preflight.draw_up(GOOD, b"", Choice(), Root(root), faults_of_database=[fault])
    assert plan.faults == (fault,)
    assert plan.steps


def test_a_port_of_another_address_is_free(root: Path) -> None:
    listener("127.0.0.9:587")(root)
    assert plan_of(root).faults == ()


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        smtp = Smtp(host="127.0.0.1", relay_port=port, submission_port=0, smtps_port=0)
        (fault,) = preflight._taken_now(Config(smtp=smtp))
    assert fault.what == f"smtp.relay_port: 127.0.0.1:{port}: Address already in use"


def test_services_hold_off_what_the_existing_main_cf_sets(root: Path) -> None:
    with (root / "etc/postfix/main.cf").open("a") as main:
        main.write("smtpd_tls_req_ccert = yes\ncontent_filter = scan:[127.0.0.1]:10025\nalways_bcc = a@example.org\n")
    os.utime(root / "etc/postfix/main.cf", (0, 0))
    plan = plan_of(root, choice=Choice(mode="services"))
    (entries,) = [step.diff for step in plan.steps if hasattr(step, "diff") and step.diff]
    smtpd, cleanup = entries.split("\n127.0.0.1:587 ")[0], entries.split("\nopensend-cleanup ")[1]
    for line in ("smtpd_tls_req_ccert=no", "content_filter=", "always_bcc=", "smtpd_relay_restrictions=permit_sasl"):
        assert f"\n  -o {line}" in smtpd
    assert "\n  -o always_bcc=\n" in cleanup
    assert "message_size_limit=52428800" in cleanup


def test_dovecot_2_4_gets_its_own_form(root: Path) -> None:
    host, _ = preflight.survey(GOOD, Root(root))
    newer = Blueprint(GOOD, b"", Choice(dovecot="existing"), replace(host, dovecot_version="2.4")).plan()
    files = {step.path: step for step in newer.steps if isinstance(step, File)}
    passdb, included_in = files[DOVECOT / PASSDB_FILE], files[EXISTING_PASSDB]
    assert b"passdb opensend {" in passdb.content
    assert passdb.mode == 0o600
    assert passdb.secrets
    assert f"!include_try {passdb.path}\n".encode() in included_in.content
    assert included_in.mode == 0o644


def test_what_a_package_brought_is_used_as_it_is(root: Path) -> None:
    unit = root / "usr/lib/systemd/system/opensend-milter.target"
    unit.parent.mkdir(parents=True)
    unit.touch()
    steps = plan_of(root, choice=Choice(mode="services")).steps
    units = {step.path.name: step for step in steps if isinstance(step, File) and "systemd" in step.path.parts}
    assert set(units) == {"place.conf", "postfix.conf"}
    assert b" postfix.service " in units["postfix.conf"].content
    links = {step.path.name: step.target for step in steps if isinstance(step, SymbolicLink)}
    target = "/usr/lib/systemd/system/opensend-milter.target"
    assert links == {"opensend-postfix.service": "/dev/null", "opensend-milter.target": target}


def test_a_certificate_of_traefik_becomes_two_files_and_its_key_is_not_shown(root: Path) -> None:
    chain, key = ((root / "etc/ssl/mail" / name).read_bytes() for name in ("fullchain.pem", "privkey.pem"))
    entry = {"domain": {"main": "relay.example.org"}, "certificate": _base64(chain), "key": _base64(key)}
    (root / "etc/acme.json").write_text(json.dumps({"resolver": {"Certificates": [entry]}}))
    plan = plan_of(root, replace(GOOD, tls=Tls(acme_json=Path("/etc/acme.json"))))
    assert plan.faults == ()
    files = {step.path: step for step in plan.steps if isinstance(step, File)}
    written = files[Path("/var/lib/opensend-milter/certificate/privkey.pem")]
    assert (written.content, written.mode) == (key, 0o600)
    assert (
        b"/var/lib/opensend-milter/certificate/privkey.pem"
        in files[Path("/etc/opensend-milter/postfix/main.cf")].content
    )
    shown = "".join(one.diff for one in install.outlooks(plan))
    assert key.decode().splitlines()[1] not in shown
    other = plan_of(root, replace(GOOD, smtp=Smtp(hostname="x.example"), tls=Tls(acme_json=Path("/etc/acme.json"))))
    assert "has no certificate for x.example" in other.faults[0].what


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
