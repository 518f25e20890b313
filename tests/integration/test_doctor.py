"""Each part that `doctor` looks at, healthy and with one fault planted in the real thing."""

from __future__ import annotations

import dataclasses
import datetime as dt
import grp
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import boto3
import psycopg
import pytest
from psycopg import sql

from opensend_milter.adapters.admin.connections import UNLIMITED, RoleUse, judged, seen
from opensend_milter.adapters.admin.inspection import Inspection
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.aws import sns_inspection, sqs_inspection
from opensend_milter.adapters.schema import migrations
from opensend_milter.adapters.schema.roles import CONNECTION_LIMITS
from opensend_milter.app.examining import examination, made_key, some_user
from opensend_milter.cli.machine import doctor
from opensend_milter.config import (
    Auth,
    Aws,
    Config,
    Console,
    Database as DatabaseConfig,
    Delivery,
    Feedback,
    Http,
    Maildir,
    Milter,
    Queue,
    Relay,
    Sendmail,
    Size,
    Smtp,
    Tls,
)
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Check, Finding, Result, chosen, examine
from opensend_milter.host.examining import (
    console as checks_console,
    machine as checks_machine,
    smtp as checks_smtp,
    sockets as checks_sockets,
    tls as checks_tls,
)
from opensend_milter.host.examining.host_checks import Site
from opensend_milter.host.rendering.certificates import MadeCertificate, make_certificate
from tests.integration.private_postgres import SUPERUSER, Database
from tests.integration.sqs_server import new_queue, running_sqs, set_credentials
from tests.smtp_sink import DROP, Sink

NAME = "mail.example.org"
NOW = dt.datetime.now(dt.UTC)
GROUP = grp.getgrgid(os.getegid()).gr_name
BAD = {Result.PROBLEM, Result.WARNING}


def looked_at(checks: Iterator[Check], *only: str) -> dict[str, Finding]:
    listed = list(checks)
    return {one.name: one for one in examine(listed, chosen(listed, only))}


def results(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {name: one.result.value for name, one in findings.items() if one.result in BAD}


# ---------------------------------------------------------------- database


@pytest.fixture
def config(database: Database) -> Config:
    return Config(database=DatabaseConfig(url=database.url, password_dir=database.password_dir))


def inspected(config: Config, *only: str) -> dict[str, Finding]:
    inspection = Inspection(config)
    try:
        return looked_at(inspection.checks(), *only)
    finally:
        inspection.close()


@contextmanager
def worker(database: Database) -> Iterator[None]:
    """Be connected as the worker is."""
    with closing(psycopg.connect(database.url_for("opensend_worker"), application_name="opensend-worker-0")):
        yield


EXPECTED = {"database.durable": "warning"}
"""The cluster of the tests writes nothing to disk."""


def test_a_healthy_database(database: Database, config: Config) -> None:
    with worker(database):
        assert results(inspected(config)) == EXPECTED


DATABASE_FAULTS = {
    "right-missing": ("database.rights", "REVOKE INSERT ON opensend_milter.jobs FROM opensend_milter"),
    "right-too-many": ("database.rights", "GRANT SELECT ON public.api_keys TO opensend_milter"),
    "console-acts": ("database.rights", "GRANT UPDATE (status) ON public.emails TO opensend_console_actor"),
    "function-gone": ("database.rights", "DROP FUNCTION opensend_milter.key_id(text)"),
    "migration-pending": (
        "database.migrations",
        "DELETE FROM opensend_milter.migrations WHERE name = (SELECT max(name) FROM opensend_milter.migrations)",
    ),
    "migration-changed": ("database.migrations", "UPDATE opensend_milter.migrations SET sha256 = 'other'"),
    "migration-newer": (
        "database.migrations",
        "INSERT INTO opensend_milter.migrations (name, sha256) VALUES ('ours/9999_future', 'x')",
    ),
    "index-of-ours": ("database.indexes", "DROP INDEX opensend_milter.jobs_due_idx"),
    "index-of-keys": ("database.indexes", "DROP INDEX public.api_keys_token_hash_idx"),
    "index-invalid": (
        "database.indexes",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'opensend_milter.jobs_lane_idx'::regclass",
    ),
    "temporary-tables": ("database.public", "GRANT TEMPORARY ON DATABASE {} TO PUBLIC"),
    "large-objects": (
        "database.public",
        "GRANT EXECUTE ON FUNCTION pg_catalog.lo_from_bytea(oid, bytea) TO PUBLIC",
    ),
    "read-only": ("database.writable", "ALTER DATABASE {} SET default_transaction_read_only = on"),
    "no-client": (
        "milter.client",
        (
            "INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,"
            " key_id, sender, recipients, size_bytes)"
            " VALUES ('network-unknown', 451, '4.3.5', '', 'smtp', '4X', '', '', '', '{{}}', 1)"
        ),
    ),
    "late": (
        "outbox.age",
        (
            "INSERT INTO opensend_milter.jobs (email_id, user_id, not_before)"
            " VALUES (gen_random_uuid(), 'default', now() - interval '10 minutes')"
        ),
    ),
    "very-late": (
        "outbox.age",
        (
            "INSERT INTO opensend_milter.jobs (email_id, user_id, not_before)"
            " VALUES (gen_random_uuid(), 'default', now() - interval '2 hours')"
        ),
    ),
    "dead-worker": (
        "outbox.leases",
        (
            "INSERT INTO opensend_milter.jobs (email_id, user_id, state, lease_until)"
            " VALUES (gen_random_uuid(), 'default', 'attempting', now() - interval '10 minutes')"
        ),
    ),
    "uncertain": (
        "outbox.uncertain",
        (
            "INSERT INTO opensend_milter.jobs (email_id, user_id, state, uncertain_at)"
            " VALUES (gen_random_uuid(), 'default', 'uncertain', now())"
        ),
    ),
    "feedback": (
        "outbox.feedback",
        (
            "INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload, received_at)"
            " VALUES ('bounced', 'x', gen_random_uuid(), '{{}}', now() - interval '1 hour')"
        ),
    ),
    "search": (
        "worker.search",
        (
            """INSERT INTO emails ("from", "to", subject, status, created_at)"""
            " VALUES ('a@b.example', '[]', '', 'sent', now() - interval '1 hour')"
        ),
    ),
    "unknown": (
        "outbox.unknown",
        (
            "INSERT INTO opensend_milter.lane_answers (user_id, courier, recipients, unknown)"
            " VALUES ('default', 'smtp', 30, 11)"
        ),
    ),
}


TABLES_APART = {
    "ALTER TABLE logs ALTER request_body TYPE text": "logs.request_body is text here, jsonb expected",
    "ALTER TABLE emails DROP tags": "emails.tags is missing here, jsonb expected",
    "ALTER TABLE api_keys ADD organization text NOT NULL": (
        "api_keys.organization is not null here, and a row of ours says nothing there"
    ),
}


@pytest.mark.case(71)
@pytest.mark.altered_tables
@pytest.mark.parametrize(("change", "told"), TABLES_APART.items())
def test_tables_of_another_opensend_are_named(beside: Database, change: str, told: str) -> None:
    config = Config(profile="opensend", database=DatabaseConfig(url=beside.url, password_dir=beside.password_dir))
    assert inspected(config, "database.tables")["database.tables"].result is Result.GOOD
    with beside.connect() as connection:
        connection.execute(change.encode())
    found = inspected(config, "database.tables")["database.tables"]
    assert (found.result, found.seen) == (Result.PROBLEM, told)


def test_what_everybody_may_beside_opensend_is_told(beside: Database) -> None:
    config = Config(profile="opensend", database=DatabaseConfig(url=beside.url, password_dir=beside.password_dir))
    found = inspected(config, "database.public")["database.public"]
    assert (found.result, found.mend) == (Result.WARNING, "")
    assert "temporary tables and large objects" in found.seen


def test_jobs_whose_emails_moved_on_are_counted(beside: Database) -> None:
    config = Config(profile="opensend", database=DatabaseConfig(url=beside.url, password_dir=beside.password_dir))
    assert inspected(config, "outbox.moved_on")["outbox.moved_on"].result is Result.GOOD
    with beside.connect() as connection:
        connection.execute("INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (gen_random_uuid(), 'u')")
    found = inspected(config, "outbox.moved_on")["outbox.moved_on"]
    assert found.result is Result.WARNING
    assert found.seen.startswith("1 job(s)")


@pytest.mark.parametrize("fault", DATABASE_FAULTS)
def test_a_fault_in_the_database(database: Database, config: Config, fault: str) -> None:
    check, statement = DATABASE_FAULTS[fault]
    with database.connect() as connection, worker(database):
        connection.execute(sql.SQL(statement).format(sql.Identifier(database.name)))
        findings = inspected(config)
    assert results(findings).keys() - EXPECTED.keys() == {check}, findings[check]
    assert findings[check].mend


def test_how_late_is_how_bad(database: Database, config: Config) -> None:
    for fault, expected in (("late", "warning"), ("very-late", "problem")):
        with database.connect() as connection:
            connection.execute(DATABASE_FAULTS[fault][1])
        assert results(inspected(config, "outbox.age")) == {"outbox.age": expected}


def test_a_database_without_a_worker(config: Config) -> None:
    assert results(inspected(config, "worker")) == {"worker.connected": "problem"}


def test_a_database_that_is_down(database: Database, config: Config) -> None:
    database.cluster.stop()
    findings = inspected(config)
    assert results(findings) == {"database.reachable": "problem"}
    assert {one.result for one in findings.values()} == {Result.PROBLEM, Result.SKIPPED}


def test_a_password_that_is_wrong_or_missing(config: Config, tmp_path: Path) -> None:
    assert config.database.password_dir
    copied = tmp_path / "passwords"
    shutil.copytree(config.database.password_dir, copied)
    (copied / "opensend_http").write_text("wrong-on-purpose")
    spoiled = dataclasses.replace(config, database=dataclasses.replace(config.database, password_dir=copied))
    found = inspected(spoiled, "database.passwords")["database.passwords"]
    assert found.result is Result.PROBLEM
    assert found.seen.startswith("opensend_http: ")
    assert "wrong-on-purpose" not in found.seen
    (copied / "opensend_http").unlink()
    assert inspected(spoiled, "database.passwords")["database.passwords"].result is Result.PROBLEM
    without = dataclasses.replace(config, database=dataclasses.replace(config.database, password_dir=None))
    assert results(inspected(without, "database.passwords")) == {"database.passwords": "warning"}


def test_a_role_with_too_much_power(database: Database, config: Config) -> None:
    with database.connect() as connection:
        connection.execute("ALTER ROLE opensend_worker CREATEDB")
        try:
            found = inspected(config, "database.roles")["database.roles"]
            assert found.result is Result.PROBLEM
            connection.execute(found.mend)
            assert inspected(config, "database.roles")["database.roles"].result is Result.GOOD
        finally:
            connection.execute("ALTER ROLE opensend_worker NOCREATEDB")


def test_a_console_that_may_act_and_rights_that_differ(database: Database, config: Config) -> None:
    acting = dataclasses.replace(config, console=Console(port=1, actions=True))
    asked = "database.rights", "database.migrations"
    found = inspected(acting, *asked)
    assert results(found) == dict.fromkeys(asked, "problem")
    assert "opensend_console_actor lacks public.emails UPDATE" in found["database.rights"].seen
    migrations.init(database.url, database.password_dir, actions=True)
    assert results(inspected(acting, *asked)) == {}
    assert results(inspected(config, *asked)) == dict.fromkeys(asked, "problem")


def test_a_role_with_too_few_connections(database: Database, config: Config) -> None:
    """What is configured is reckoned before it is missing; the mend gives enough."""
    usual = CONNECTION_LIMITS["opensend_worker"]
    with database.connect() as connection:
        connection.execute("ALTER ROLE opensend_worker CONNECTION LIMIT 3")
        try:
            found = inspected(config, "database.limits")["database.limits"]
            assert found.result is Result.PROBLEM
            assert "too few: opensend_worker 0 of 3, and 12 may be wanted" in found.seen
            connection.execute(found.mend)
            assert inspected(config, "database.limits")["database.limits"].result is Result.GOOD
            connection.execute("ALTER ROLE opensend_worker CONNECTION LIMIT 1")
            with worker(database):
                assert "opensend_worker 1 of 1" in inspected(config, "database.limits")["database.limits"].seen
        finally:
            connection.execute(sql.SQL("ALTER ROLE opensend_worker CONNECTION LIMIT {}").format(sql.Literal(usual)))


@pytest.mark.parametrize(
    ("changed", "role"),
    [
        ({"milter": Milter(processes=16)}, "opensend_milter"),
        ({"delivery": Delivery(concurrency=16)}, "opensend_worker"),
    ],
)
def test_more_is_configured_than_a_role_may_have(config: Config, changed: dict[str, Any], role: str) -> None:
    found = inspected(dataclasses.replace(config, **changed), "database.limits")["database.limits"]
    assert (found.result, found.seen.startswith(f"too few: {role} 0 of ")) == (Result.PROBLEM, True)
    assert f"ALTER ROLE {role} CONNECTION LIMIT " in found.mend


def use(*, limit: int = 20, used: int = 2, wanted: int = 11) -> RoleUse:
    return RoleUse(role="opensend_worker", limit=limit, used=used, wanted=wanted)


@pytest.mark.parametrize(
    ("roles", "most", "expected", "mend"),
    [
        ([use()], 97, Result.GOOD, ""),
        ([use(limit=UNLIMITED, used=90, wanted=90)], 97, Result.GOOD, ""),
        ([use(used=17)], 97, Result.GOOD, ""),
        ([use(used=18)], 97, Result.WARNING, "LIMIT 40;"),
        ([use(used=20)], 97, Result.PROBLEM, "LIMIT 40;"),
        ([use(wanted=20)], 97, Result.GOOD, ""),
        ([use(wanted=22)], 97, Result.PROBLEM, "LIMIT 22;"),
        ([use(limit=0, used=0)], 97, Result.PROBLEM, "LIMIT 11;"),
        ([use(), use()], 21, Result.WARNING, "max_connections = 44;"),
        ([], 97, Result.GOOD, ""),
    ],
)
def test_how_few_connections_are_too_few(roles: list[RoleUse], most: int, expected: Result, mend: str) -> None:
    found = judged(roles, most)
    assert (found.result, mend in found.mend) == (expected, True)


def test_two_hosts_want_twice_as_much(config: Config) -> None:
    """Sessions from two addresses are two hosts'; a role that nobody uses yet will be used by this one."""
    rows = [("opensend_worker", 20, 4, 2, 97), ("opensend_http", 20, 0, 0, 97)]
    assert "opensend_worker 4 of 20, and 24 may be wanted" in seen(rows, config).text


def test_a_role_whose_commits_are_not_on_disk(database: Database, config: Config) -> None:
    statement = sql.SQL("ALTER ROLE opensend_milter IN DATABASE {} SET synchronous_commit = off")
    with database.connect() as connection:
        connection.execute(statement.format(sql.Identifier(database.name)))
        assert "synchronous_commit of opensend_milter" in inspected(config, "database.durable")["database.durable"].seen


def test_without_the_owner_the_worker_sees_what_it_may(database: Database, config: Config) -> None:
    """The URL of a configuration holds no password; then the files of the roles are all there is."""
    url = database.url.replace(f"{SUPERUSER}:", f"{SUPERUSER}:wrong")
    held = dataclasses.replace(config, database=dataclasses.replace(config.database, url=url))
    with worker(database):
        findings = inspected(held)
    assert findings["database.reachable"].seen.endswith("as opensend_worker")
    assert results(findings) == EXPECTED
    assert findings["database.migrations"].result is Result.SKIPPED


def test_an_empty_database_is_told_as_such(database: Database, config: Config) -> None:
    with database.connect() as connection:
        connection.execute("DROP SCHEMA opensend_milter CASCADE")
    findings = inspected(config, "database", "outbox")
    assert {"database.migrations", "database.rights", "outbox.age"} <= results(findings).keys()
    assert "db init" in findings["database.rights"].mend


def test_a_key_made_for_the_moment_is_gone_afterwards_and_ends_by_itself(database: Database) -> None:
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        with pytest.raises(UsageError, match="no user with a domain or a key"):
            some_user(store)
        store.add_domain(store.ensure_user("unverified"), "other.example", verified=False)
        store.add_domain(store.ensure_user("shop"), "shop.example", verified=True)
        assert some_user(store) == "shop"
        with made_key(store, "shop") as token:
            (key,) = store.list_keys("shop")
            assert token.startswith("os_")
            assert key.expires_at
            assert dt.timedelta(0) < key.expires_at - dt.datetime.now(dt.UTC) < dt.timedelta(minutes=11)
        assert store.list_keys("shop") == []


def test_a_probe_is_from_a_domain_that_every_client_can_say(database: Database) -> None:
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        store.ensure_user("shop")
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('bücher.example', 'verified', 'shop')")
        assert doctor._draft(lambda: store, None, None).sender == "postmaster@xn--bcher-kva.example"


# ---------------------------------------------------------------- queue


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    set_credentials()
    with running_sqs() as running:
        yield running


def queue_findings(endpoint: str, url: str, *, oldest_s: float = 0.0) -> dict[str, Finding]:
    config = Config(queue=Queue(url=url), aws=Aws(endpoint_url=endpoint))
    return looked_at(sqs_inspection.checks(config, lambda: oldest_s))


def test_a_queue_that_is_as_it_should_be(endpoint: str) -> None:
    new_queue(endpoint, "dead")
    policy = '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": "10"}'
    url = new_queue(endpoint, "healthy", RedrivePolicy=policy, VisibilityTimeout="60")
    findings = queue_findings(endpoint, url)
    assert results(findings) == {}
    assert len(findings) == 5


@pytest.mark.parametrize(
    ("check", "attributes"),
    [("queue.redrive", {"VisibilityTimeout": "60"}), ("queue.visibility", {"VisibilityTimeout": "3"})],
)
def test_a_fault_of_the_queue(endpoint: str, check: str, attributes: dict[str, str]) -> None:
    found = results(queue_findings(endpoint, new_queue(endpoint, check.replace(".", "-"), **attributes)))
    assert found[check] == "warning"


def test_a_queue_that_is_not_there(endpoint: str) -> None:
    findings = queue_findings(endpoint, f"{endpoint}/123456789012/nothing")
    assert results(findings) == {"queue.reachable": "problem"}
    assert findings["queue.redrive"].seen == "needs queue.reachable"


def test_a_topic_that_signs_with_sha1(endpoint: str) -> None:
    """As each does that nobody told otherwise; of a topic that is not there we know nothing."""
    client = boto3.session.Session("test", "test").client("sns", region_name="eu-west-1", endpoint_url=endpoint)
    topic = client.create_topic(Name="ses-events")["TopicArn"]
    for listened, result in ((topic, "warning"), (topic[:-1], "skipped")):
        config = Config(feedback=Feedback(topics=listened), aws=Aws(endpoint_url=endpoint))
        found = looked_at(sns_inspection.checks(config))["feedback.signature"]
        assert found.result.value == result
        assert (f"--topic-arn {topic} --attribute-name SignatureVersion" in found.mend) is (result == "warning")


def test_without_a_queue_there_is_nothing_to_see() -> None:
    assert {one.result for one in looked_at(sqs_inspection.checks(Config(), lambda: 0.0)).values()} == {Result.SKIPPED}


# ---------------------------------------------------------------- certificate


@pytest.fixture
def made(tmp_path: Path) -> MadeCertificate:
    return make_certificate(tmp_path, [NAME], now=NOW)


def tls_findings(folder: Path, *, now: dt.datetime = NOW, hostname: str = NAME) -> dict[str, Finding]:
    config = Config(tls=Tls(folder=folder), smtp=Smtp(hostname=hostname))
    return looked_at(checks_tls.checks(config, lambda: now))


def test_a_certificate_that_is_good(made: MadeCertificate) -> None:
    assert results(tls_findings(made.ca.parent)) == {}


@pytest.mark.parametrize(("days_left", "result"), [(22, None), (20, "warning"), (-1, "problem")])
@pytest.mark.case(69)
def test_a_certificate_that_ends(made: MadeCertificate, days_left: int, result: str | None) -> None:
    found = results(tls_findings(made.ca.parent, now=made.pair.expires_at - dt.timedelta(days=days_left)))
    assert found == ({"tls.expiry": result} if result else {})


def test_a_certificate_of_another_name(made: MadeCertificate) -> None:
    found = tls_findings(made.ca.parent, hostname="other.example.org")
    assert results(found) == {"tls.hostname": "problem"}
    assert NAME in found["tls.hostname"].seen
    assert results(tls_findings(made.ca.parent, hostname="")) == {"tls.hostname": "warning"}


def test_a_chain_without_its_issuer(made: MadeCertificate, tmp_path: Path) -> None:
    leaf = made.pair.certificate.read_text().partition("-----END CERTIFICATE-----\n")
    made.pair.certificate.write_text("".join(leaf[:2]))
    assert results(tls_findings(made.ca.parent)) == {"tls.chain": "warning"}
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", [NAME], now=NOW)
    made.pair.certificate.write_text("".join(leaf[:2]) + other.ca.read_text())
    assert "is not the issuer" in tls_findings(made.ca.parent)["tls.chain"].seen


def test_a_key_that_everybody_may_read(made: MadeCertificate) -> None:
    made.pair.key.chmod(0o644)
    found = tls_findings(made.ca.parent)
    assert results(found) == {"tls.key-mode": "problem"}
    subprocess.run(found["tls.key-mode"].mend, shell=True, check=True)  # noqa: S602  # as an operator would
    assert results(tls_findings(made.ca.parent)) == {}


@pytest.mark.case(69)
def test_a_certificate_that_cannot_be_loaded(made: MadeCertificate) -> None:
    made.pair.key.unlink()
    found = tls_findings(made.ca.parent)
    assert results(found) == {"tls.certificate": "problem"}
    assert "privkey.pem" in found["tls.certificate"].seen


# ---------------------------------------------------------------- sockets


Answer = Callable[[socket.socket], None]


@contextmanager
def listening(path: Path, answer: Answer) -> Iterator[None]:
    """Answer one connection after another on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def as_milter(connection: socket.socket) -> None:
    connection.recv(64)
    connection.sendall(b"\0\0\0\x0dO" + b"\0\0\0\x06" + bytes(8))


def as_dovecot(connection: socket.socket) -> None:
    connection.sendall(b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nDONE\n")
    connection.recv(64)


def as_another(connection: socket.socket) -> None:
    connection.recv(64)
    connection.sendall(b"220 what do you want?\r\n")


def as_nobody(connection: socket.socket) -> None:
    connection.close()


def as_dovecot_without_plain(connection: socket.socket) -> None:
    connection.sendall(b"VERSION\t1\t2\nMECH\tDIGEST-MD5\nDONE\n")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory that every user can enter: pytest's own are closed."""
    directory = Path(tempfile.mkdtemp(prefix="os-doctor-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def socket_findings(
    run_dir: Path,
    *only: str,
    tmpfiles: Path | None = None,
    group: str = GROUP,
    protocol: Literal["dovecot", "saslauthd"] = "dovecot",
) -> dict[str, Finding]:
    milter = Milter(socket=run_dir / "milter.sock", socket_group=group)
    auth = Auth(
        protocol=protocol, socket=run_dir / "auth.sock", socket_group=group, dovecot_socket=run_dir / "dovecot.sock"
    )
    config = Config(milter=milter, auth=auth)
    return looked_at(checks_sockets.checks(config, (tmpfiles or run_dir / "tmpfiles.d",)), *only)


def test_sockets_that_answer(run_dir: Path) -> None:
    with (
        listening(run_dir / "milter.sock", as_milter),
        listening(run_dir / "auth.sock", as_dovecot),
        listening(run_dir / "dovecot.sock", as_dovecot),
    ):
        assert results(socket_findings(run_dir)) == {}


@pytest.mark.parametrize(
    ("said", "result"), [(b"\0\2NO", {}), (b"\0\2OK", {"auth.answers": "problem"}), (b"", {"auth.answers": "problem"})]
)
def test_a_gate_that_cyrus_sasl_asks(run_dir: Path, said: bytes, result: dict[str, str]) -> None:
    """A key that is empty is no key."""

    def as_saslauthd(connection: socket.socket) -> None:
        assert connection.recv(64) == bytes(8)
        connection.sendall(said)

    with listening(run_dir / "auth.sock", as_saslauthd):
        assert results(socket_findings(run_dir, "auth", protocol="saslauthd")) == result


@pytest.mark.parametrize(
    ("part", "name", "answer", "seen"),
    [
        ("milter", "milter.sock", as_another, "is no milter"),
        ("milter", "milter.sock", as_nobody, "milter.sock: "),
        ("auth", "auth.sock", as_nobody, "closed before its greeting ended"),
        ("auth", "auth.sock", as_dovecot_without_plain, "offers no PLAIN"),
        ("dovecot-auth", "dovecot.sock", as_nobody, "closed before its greeting ended"),
    ],
)
def test_a_socket_with_something_else_behind_it(run_dir: Path, part: str, name: str, answer: Answer, seen: str) -> None:
    with listening(run_dir / name, answer):
        findings = socket_findings(run_dir, part)
    assert results(findings) == {f"{part}.answers": "problem"}
    assert seen in findings[f"{part}.answers"].seen


def test_a_socket_that_nobody_listens_at(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(run_dir / "milter.sock"))
    (run_dir / "milter.sock").chmod(0o660)
    findings = socket_findings(run_dir, "milter")
    assert results(findings) == {"milter.answers": "problem"}
    assert "Connection refused" in findings["milter.answers"].seen


def no_socket(run_dir: Path) -> None:
    (run_dir / "milter.sock").unlink()


def a_file(run_dir: Path) -> None:
    (run_dir / "milter.sock").unlink()
    (run_dir / "milter.sock").write_text("")


def closed_to_the_group(run_dir: Path) -> None:
    (run_dir / "milter.sock").chmod(0o600)


def open_to_all(run_dir: Path) -> None:
    (run_dir / "milter.sock").chmod(0o666)


def another_group(run_dir: Path) -> None:
    os.chown(run_dir / "milter.sock", -1, os.getegid() + 1)


def closed_directory(run_dir: Path) -> None:
    os.chown(run_dir, -1, os.getegid() + 1)
    run_dir.chmod(0o710)


@pytest.mark.case(67)
@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (no_socket, "does not exist"),
        (a_file, "is no socket"),
        (closed_to_the_group, "has mode 0600"),
        (open_to_all, "is open to every user"),
        (another_group, "belongs to group"),
        (closed_directory, "cannot enter"),
    ],
)
def test_a_socket_that_postfix_cannot_open(run_dir: Path, spoil: Callable[[Path], None], seen: str) -> None:
    with listening(run_dir / "milter.sock", as_milter):
        spoil(run_dir)
        findings = socket_findings(run_dir, "milter.socket")
    assert results(findings) == {"milter.socket": "problem"}
    assert seen in findings["milter.socket"].seen
    assert findings["milter.socket"].mend


@pytest.mark.parametrize(
    ("mode", "parts"), [(0o2775, {"milter", "auth"}), (0o757, {"milter", "auth"}), (0o1777, set())]
)
def test_a_directory_that_others_may_write_in(run_dir: Path, mode: int, parts: set[str]) -> None:
    """Whoever may, puts a socket of his own there; where the sticky bit is, he cannot take away another's."""
    with listening(run_dir / "milter.sock", as_milter), listening(run_dir / "auth.sock", as_dovecot):
        run_dir.chmod(mode)
        findings = socket_findings(run_dir, "milter.rights", "auth.rights")
        assert results(findings) == {f"{part}.rights": "problem" for part in parts}
        for found in findings.values():
            subprocess.run(found.mend or "true", shell=True, check=True)  # noqa: S602  # as an operator would
        assert results(socket_findings(run_dir, "milter.rights", "auth.rights")) == {}


@pytest.mark.case(80)
def test_a_directory_of_serve_is_no_place_for_the_gates_socket(run_dir: Path) -> None:
    with listening(run_dir / "milter.sock", as_milter), listening(run_dir / "auth.sock", as_dovecot):
        os.chown(run_dir, pwd.getpwnam("nobody").pw_uid, -1)
        findings = socket_findings(run_dir, "milter.rights", "auth.rights")
    assert results(findings) == {"auth.rights": "problem"}
    assert findings["auth.rights"].seen == f"{run_dir} belongs to nobody, not to root"


@pytest.mark.case(67)
def test_a_group_and_a_directory_that_do_not_exist(run_dir: Path) -> None:
    with listening(run_dir / "milter.sock", as_milter):
        found = socket_findings(run_dir, "milter.socket", group="no-such-group")["milter.socket"]
    assert found.seen == "there is no group no-such-group"
    found = socket_findings(run_dir / "gone", "milter.socket")["milter.socket"]
    assert "gone does not exist" in found.seen
    assert "systemd-tmpfiles" in found.mend


@pytest.mark.case(67)
def test_a_directory_that_a_reboot_takes_away(tmp_path: Path) -> None:
    """Nothing is made in /run: what is asked for is only whether somebody would make it."""
    place = Path("/run/opensend-doctor-test")
    assert results(socket_findings(place, "milter.directory", tmpfiles=tmp_path)) == {"milter.directory": "warning"}
    (tmp_path / "opensend-milter.conf").write_text(f"# ours\nd {place} 2750 root postfix -\n")
    assert results(socket_findings(place, "milter.directory", tmpfiles=tmp_path)) == {}


# ---------------------------------------------------------------- ports


def door_findings(port: int, *only: str, key_file: Path | None = None, tls: Tls | None = None) -> dict[str, Finding]:
    smtp = Smtp(host="127.0.0.1", hostname=NAME, relay_port=port, submission_port=0, smtps_port=0)
    config = Config(smtp=smtp, tls=tls or Tls())
    return looked_at(checks_smtp.checks(config, proxied=frozenset, key_file=key_file, made_key=None), *only)


CLOSED = {"MAIL": "530 5.7.0 Authentication required", "AUTH": "535 5.7.8 no"}


def test_a_port_that_refuses_strangers() -> None:
    with Sink(CLOSED, extensions=("AUTH PLAIN",)) as sink:
        assert results(door_findings(sink.port, "smtp.answers", "smtp.open-relay", "smtp.wrong-key")) == {}
    assert "DATA" not in sink.verbs(), "it never sends anything"


@pytest.mark.parametrize(
    ("answers", "check", "seen"),
    [
        ({}, "smtp.open-relay", "takes a recipient of another host"),
        ({"RCPT": "554 5.7.1 no"}, "smtp.open-relay", "takes MAIL FROM without AUTH"),
        ({"AUTH": "235 2.7.0 welcome"}, "smtp.wrong-key", "a made-up key is taken"),
        ({"AUTH": "454 4.7.0 later"}, "smtp.wrong-key", "454"),
        ({"connect": "421 4.3.2 not now"}, "smtp.answers", "421"),
        ({"connect": DROP}, "smtp.answers", "no answer"),
        ({}, "smtp.starttls", "offers no TLS"),
    ],
)
def test_a_port_that_is_wrong(answers: dict[str, str], check: str, seen: str) -> None:
    with Sink(answers, extensions=("AUTH PLAIN",)) as sink:
        findings = door_findings(sink.port, check)
    assert results(findings) == {check: "problem"}
    assert seen in findings[check].seen


def test_a_port_without_a_server() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    findings = door_findings(port)
    assert results(findings) == {"smtp.answers": "problem"}
    assert findings["smtp.open-relay"].seen == "needs smtp.answers"


def test_a_port_with_another_certificate(made: MadeCertificate, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.pair.certificate, made.pair.key)
    with Sink(CLOSED, extensions=("STARTTLS", "AUTH PLAIN"), context=context) as sink:
        ours = Tls(folder=made.ca.parent)
        assert results(door_findings(sink.port, "smtp.certificate", "smtp.starttls", tls=ours)) == {}
        (tmp_path / "new").mkdir()
        make_certificate(tmp_path / "new", [NAME], now=NOW)
        renewed = Tls(folder=tmp_path / "new")
        assert results(door_findings(sink.port, "smtp.certificate", tls=renewed)) == {"smtp.certificate": "problem"}


def test_a_canary_that_is_refused_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("os_" + "5" * 32)
    with Sink(CLOSED, extensions=("AUTH PLAIN",)) as sink:
        found = door_findings(sink.port, "smtp.canary-key", key_file=tmp_path / "key")["smtp.canary-key"]
    assert found.result is Result.PROBLEM
    assert "os_5" not in str(found)


# ---------------------------------------------------------------- machine


def machine_findings(config: Config, *only: str, path: Path = Path("/none"), sessions: int = 10) -> dict[str, Finding]:
    spool = config.milter.spool_dir
    checks = checks_machine.checks(config, path, queue_dir=lambda: spool, sessions=sessions)
    return looked_at(checks, *only)


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    config = Config(milter=Milter(spool_dir=tmp_path))
    assert results(machine_findings(config, "machine.spool-space", "machine.queue-space")) == {}
    huge = dataclasses.replace(config, size=Size(max_message_bytes=shutil.disk_usage(tmp_path).free))
    found = machine_findings(huge, "machine.spool-space", "machine.queue-space")
    assert results(found) == {"machine.queue-space": "problem", "machine.spool-space": "problem"}


def test_too_few_descriptors(run_dir: Path) -> None:
    program = (
        "import resource, socket, sys, time; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True); sys.stdin.read()"
    )
    config = Config(milter=Milter(socket=run_dir / "milter.sock"))
    command = [sys.executable, "-c", program, str(run_dir / "milter.sock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = machine_findings(config, "machine.descriptors", sessions=300)["machine.descriptors"]
    assert found.result is Result.WARNING
    assert "may open 64 files; 300 sessions need 700" in found.seen
    assert machine_findings(config, "machine.descriptors")["machine.descriptors"].result is Result.SKIPPED


def test_secrets_that_everybody_may_read(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("x")
    secret.chmod(0o600)
    config = Config(relay=Relay(username="u", password_file=secret))
    assert results(machine_findings(config, "machine.secrets")) == {}
    secret.chmod(0o644)
    assert results(machine_findings(config, "machine.secrets")) == {"machine.secrets": "problem"}


@pytest.mark.parametrize(("name", "result"), [(NAME, None), ("mail", "warning"), ("", "warning")])
def test_the_name_of_the_host(name: str, result: str | None) -> None:
    found = results(machine_findings(Config(smtp=Smtp(hostname=name)), "machine.hostname"))
    assert found == ({"machine.hostname": result} if result else {})


def shut_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def test_a_next_hop_that_cannot_be_reached() -> None:
    with Sink() as sink:
        here, away = sink.port, shut_port()
        for port, fallback, result in ((here, "", None), (away, f"127.0.0.2:{here}", "problem"), (away, "", "problem")):
            config = Config(relay=Relay(port=port, fallbacks=fallback))
            found = results(machine_findings(config, "courier"))
            assert found == ({"courier.reachable": result} if result else {}), (port, fallback)
        half = Config(relay=Relay(port=here, fallbacks=f"localhost:{away}"))
        assert results(machine_findings(half, "courier")) == {"courier.reachable": "warning"}


def test_port_25_is_what_clouds_block() -> None:
    found = machine_findings(Config(relay=Relay(host="127.255.255.254", port=25)), "courier")["courier.reachable"]
    assert found.result is Result.PROBLEM
    assert "port 25" in found.mend


@pytest.mark.parametrize(
    "config",
    [
        Config(delivery=Delivery(courier="sendmail"), sendmail=Sendmail(path=Path("/nonexistent/sendmail"))),
        Config(delivery=Delivery(courier="plunk")),
        Config(delivery=Delivery(courier="ses"), aws=Aws(endpoint_url="http://127.0.0.1:1")),
    ],
    ids=lambda config: config.delivery.courier,
)
def test_a_courier_that_cannot_work(config: Config) -> None:
    assert results(machine_findings(config, "courier")) == {"courier.reachable": "problem"}


def test_a_courier_that_can_work(tmp_path: Path) -> None:
    sendmail = Config(delivery=Delivery(courier="sendmail"), sendmail=Sendmail(path=Path("/bin/true")))
    maildir = Config(delivery=Delivery(courier="file"), maildir=Maildir(folder=tmp_path / "new" / "maildir"))
    for config in (sendmail, maildir):
        assert results(machine_findings(config, "courier")) == {}


@pytest.mark.parametrize(("status", "result"), [(200, "good"), (503, "problem"), (0, "skipped")])
def test_the_http_process(status: int, result: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/readyz"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.02))
        thread.start()
        port = server.server_address[1] if status else shut_port()
        found = machine_findings(Config(http=Http(port=int(port))), "http")["http.answers"]
        server.shutdown()
        thread.join()
    assert found.result.value == result


# ---------------------------------------------------------------- the console


def console_findings(**settings: Any) -> dict[str, Finding]:
    return looked_at(checks_console.checks(Config(console=Console(**settings))), "console")


def test_a_console_that_is_off_is_not_looked_at() -> None:
    assert {found.result.value for found in console_findings().values()} == {"skipped"}


def test_a_console_that_does_not_answer() -> None:
    found = console_findings(port=shut_port())["console.answers"]
    assert (found.result.value, "Connection refused" in found.seen) == ("problem", True)
    assert "opensend-console" in found.mend


@pytest.mark.parametrize(
    ("settings", "result"),
    [
        ({}, "good"),
        ({"trusted_proxies": "0.0.0.0/0"}, "good"),
        ({"user_header": "x-user", "trusted_proxies": "127.0.0.1/32 10.1.2.0/24 fd00::/64"}, "good"),
        ({"user_header": "x-user", "socket": Path("/run/console.sock")}, "good"),
        ({"user_header": "x-user", "trusted_proxies": "10.0.0.0/8"}, "warning"),
        ({"user_header": "x-user", "trusted_proxies": "127.0.0.1/32 8.8.8.8/32"}, "warning"),
        ({"user_header": "x-user", "trusted_proxies": "fd00::/48"}, "warning"),
    ],
)
def test_a_proxy_that_is_believed_from_too_far(settings: dict[str, Any], result: str) -> None:
    assert console_findings(port=1, **settings)["console.believed"].result.value == result


# ---------------------------------------------------------------- all together


def test_on_a_host_where_nothing_is_installed_each_check_still_says_something(tmp_path: Path) -> None:
    """No database, no Postfix, no sockets: findings, and no traceback."""
    config = Config(
        database=DatabaseConfig(url=f"postgresql://nobody@127.0.0.1:{shut_port()}/none"),
        smtp=Smtp(host="127.0.0.1", relay_port=shut_port(), submission_port=0, smtps_port=0),
        tls=Tls(acme_json=tmp_path / "acme.json"),
        milter=Milter(socket=tmp_path / "milter.sock"),
        auth=Auth(socket=tmp_path / "auth.sock", dovecot_socket=tmp_path / "dovecot.sock"),
        relay=Relay(port=shut_port()),
    )
    site = Site(
        config=config,
        config_path=tmp_path / "none.yaml",
        postfix_dir=tmp_path / "postfix",
        dovecot_dir=tmp_path / "dovecot",
        certificate_dir=tmp_path / "certificate",
    )
    with examination(site) as checks:
        findings = list(examine(checks, checks))
    assert not [one for one in findings if "could not be looked at" in one.seen]
    assert {one.name for one in findings if one.result is Result.PROBLEM} >= {
        *("tls.acme", "tls.certificate", "postfix.configuration", "dovecot.configuration", "database.reachable"),
        *("milter.socket", "auth.socket", "smtp.answers", "courier.reachable"),
    }
    assert list(tmp_path.iterdir()) == [], "it changes nothing"
    # With another mail server nobody looks for Postfix.
    other = dataclasses.replace(config, auth=dataclasses.replace(config.auth, protocol="saslauthd"))
    with examination(dataclasses.replace(site, config=other)) as checks:
        left_out = {one.name for one in findings} - {one.name for one in checks}
        (canary,) = (one for one in checks if one.name == "smtp.canary-key")
        assert "key's id" in canary.look().text
    assert {name.partition(".")[0] for name in left_out} == {"postfix"}


def test_every_check_is_explained_in_the_documentation(tmp_path: Path) -> None:
    site = Site(
        config=Config(tls=Tls(acme_json=tmp_path / "acme.json"), delivery=Delivery(courier="file")),
        config_path=tmp_path,
        postfix_dir=tmp_path,
        dovecot_dir=tmp_path,
    )
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    with examination(site) as checks:
        missing = [check.name for check in checks if f"| `{check.name}` | {check.why} |" not in page]
    assert missing == []
