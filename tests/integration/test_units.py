"""Units as shipped: valid, tight, and mail flows while each program is confined as its unit says."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.host.examining.confinement import UNITS, Service
from opensend_milter.host.installing import shipped_units
from opensend_milter.host.rendering.certificates import make_certificate
from opensend_milter.host.requirements import free_ports
from tests.integration.confined_host import HOME, PROGRAM, Host, host_with, mail_flows, settings_for, write_program
from tests.integration.overlaid_system import overlaid_system, why_not
from tests.integration.private_postgres import Cluster, Database

SELFTEST = HOME / "bin" / "selftest"
LIMITS = {
    "opensend-milter.service": 1.0,
    "opensend-auth-gate.service": 1.0,
    **{f"opensend-{name}.service": 1.5 for name in ("worker", "http", "console", "prune", "domains", "certificate")},
    # Root, with the network.
    "opensend-doctor.service": 1.6,
    # Not ours: their masters are root, so that they can give each process the user it is for.
    "opensend-dovecot.service": 3.0,
    "opensend-postfix.service": 3.0,
}


def _exposure(unit: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    figure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert figure, done
    return float(figure[1])


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def _check(name: str, figure: float, limit: float) -> None:
    print(f"{name}: exposure {figure}, at most {limit}")  # noqa: T201  # pytest -rP shows it
    assert figure <= limit


@needs_systemd
@pytest.mark.parametrize("name", LIMITS)
def test_a_unit_is_exposed_no_more_than_promised(name: str) -> None:
    _check(name, _exposure(shipped_units.folder() / name), LIMITS[name])


@needs_systemd
def test_serve_is_exposed_no_more_than_promised_with_postgres_by_tcp(tmp_path: Path) -> None:
    drop_in = shipped_units.read("opensend-milter.service.d/tcp.conf.example")
    unit = tmp_path / "opensend-milter.service"
    # Offline, systemd-analyze reads no drop-in: what one says is put behind what the unit says.
    unit.write_text(shipped_units.read(unit.name).replace("[Install]", drop_in + "[Install]"))
    _check("opensend-milter.service by TCP", _exposure(unit), 1.5)


@needs_systemd
def test_every_service_has_a_limit() -> None:
    assert {path.name for path in shipped_units.folder().glob("*.service")} == set(LIMITS)


@dataclass(frozen=True)
class MailHost:
    """The host, its database, and a key of it."""

    host: Host
    database: Database
    key: str
    submission_port: int


@pytest.fixture(scope="module")
def mail_host(_shared_cluster: Cluster, _template: Path) -> Iterator[MailHost]:
    if reason := why_not():
        pytest.skip(reason)
    submission_port = free_ports(["submission"])["submission"]
    name = "units"
    _shared_cluster.new_database(name, template="template_opensend")
    database = Database(name, _shared_cluster, _template)
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        user = store.ensure_user("u")
        key = store.create_key(name="k", user_id=user, permission="full_access", domain=None)
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', %s)", [user])
    with overlaid_system() as system, host_with(system, database, settings_for(submission_port)) as host:
        write_program(
            system,
            SELFTEST.name,
            "import typer\nfrom opensend_milter.cli.machine.selftest import selftest\ntyper.run(selftest)\n",
        )
        yield MailHost(host, database, key.token, submission_port)
    _shared_cluster.drop_database(name)


@needs_systemd
def test_verify_finds_no_fault(mail_host: MailHost) -> None:
    system = mail_host.host.system
    place = system.path("/etc/systemd/system")
    names = [
        path.name
        for path in shipped_units.folder().iterdir()
        if path.suffix in {".service", ".socket", ".timer", ".path", ".target"}
    ]
    for name in names:
        shutil.copy(shipped_units.folder() / name, place)
    done = system.run(
        "systemd-analyze", "verify", "--man=no", *(f"/etc/systemd/system/{name}" for name in sorted(names))
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("service", UNITS)
def test_what_must_be_denied_is_denied(mail_host: MailHost, service: Service) -> None:
    done = mail_host.host.run(UNITS[service], str(SELFTEST), "--security", "--as", service, "--json")
    said = json.loads(done.stdout)
    outcomes = {one["what"]: one["outcome"] for one in said["results"]}
    assert [what for what, outcome in outcomes.items() if outcome == "allowed"] == []
    reaches_out = outcomes["open a TCP connection"] == "not applicable"
    assert reaches_out == (service in {"worker", "http", "console"})
    assert done.returncode == 0


def test_what_keeps_the_doctor_in_is_no_fault_of_the_hosts(mail_host: MailHost) -> None:
    """It reads what is root's, asks Postfix and Dovecot and the database; what it cannot tell it says."""
    done = mail_host.host.run("opensend-doctor.service", str(PROGRAM), "doctor", "--store", "--json")
    assert done.returncode == 1, done.stderr  # nothing runs here
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    for name in ("postfix.relay", "dovecot.version", "dovecot.file-mode", "database.passwords", "machine.secrets"):
        assert found[name]["result"] == "good", found[name]
    assert found["courier.reachable"]["result"] == "skipped", found["courier.reachable"]
    assert not [one for one in found.values() if "could not be looked at" in one["seen"]]
    with mail_host.database.connect() as connection:
        kept = connection.execute("SELECT name, result FROM opensend_milter.findings").fetchall()
    assert dict(kept) == {name: one["result"] for name, one in found.items()}


def test_without_restrictions_it_says_what_is_allowed(mail_host: MailHost) -> None:
    run = [str(SELFTEST), "--security"]
    done = mail_host.host.system.run(*run, "--as", "serve", "--json", check=False)
    outcomes = {one["what"]: one["outcome"] for one in json.loads(done.stdout)["results"]}
    assert done.returncode == 1
    assert {"write in /etc", "read /etc/shadow", "execute a program", "write code into memory"} <= {
        what for what, outcome in outcomes.items() if outcome == "allowed"
    }
    outside = mail_host.host.system.run(*run, "--json")
    assert {one["outcome"] for one in json.loads(outside.stdout)["results"]} == {"not applicable"}
    assert all("systemd-run" in one for one in json.loads(outside.stdout)["commands"].values())


def test_a_certificate_is_taken_out_of_acme_json_by_its_unit(mail_host: MailHost, tmp_path: Path) -> None:
    system = mail_host.host.system
    made = make_certificate(tmp_path, ["mail.example.org"], now=datetime.now(UTC)).pair
    wanted, place = made.certificate.read_bytes(), system.path("/etc/opensend-milter/acme.json")
    entry = {"domain": {"main": "mail.example.org"}, "certificate": _encoded(wanted)}
    place.write_text(json.dumps({"r": {"Certificates": [entry | {"key": _encoded(made.key.read_bytes())}]}}))
    place.chmod(0o600)
    settings = {"smtp": {"hostname": "mail.example.org"}, "tls": {"acme_json": "/etc/opensend-milter/acme.json"}}
    system.path("/etc/opensend-milter/acme.yaml").write_text(json.dumps(settings))
    source = "import typer\nfrom opensend_milter.cli.machine.certificate import certificate\ntyper.run(certificate)\n"
    program = write_program(system, "certificate", source)

    def run() -> subprocess.CompletedProcess[str]:
        return mail_host.host.run("opensend-certificate.service", str(program), "-c", "/etc/opensend-milter/acme.yaml")

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "mail.example.org" in done.stdout
    taken = system.path("/var/lib/opensend-milter/certificate")
    assert (taken / "fullchain.pem").read_bytes() == wanted
    assert (taken / "privkey.pem").stat().st_mode & 0o777 == 0o600
    other = make_certificate(tmp_path, ["mail.example.org"], now=datetime.now(UTC)).pair
    place.write_text(json.dumps({"r": {"Certificates": [entry | {"key": _encoded(other.key.read_bytes())}]}}))
    assert run().returncode == 78, "not the key of this certificate"


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_mail_flows_while_every_program_is_confined(mail_host: MailHost) -> None:
    mail_flows(mail_host.host, mail_host.key, mail_host.submission_port)
