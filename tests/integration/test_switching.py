"""`doctor --before-opensend`: each check on OpenSend's own tables, healthy and with one fault planted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner, Result as Run

from opensend_milter import cli
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.adapters.schema import facts
from opensend_milter.app.switching import before_switching
from opensend_milter.config import Config, Database, Policy, Queue, Size
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Finding, Result, chosen, examine
from tests.integration.private_postgres import Cluster, program
from tests.waiting import scaled_s

TEMPLATE = "template_before_opensend"
QUEUE = "https://sqs.us-east-1.amazonaws.com/1/jobs.fifo"
HEALTHY = """
    INSERT INTO "user" (id, name, email) VALUES ('u1', 'U', 'u@example.com');
    INSERT INTO domains (name, status, user_id)
        VALUES ('Good.example', 'verified', 'u1'), ('xn--mnchen-3ya.example', 'verified', 'u1'),
            ('zürich.example', 'verified', 'u1'),
            ('new.example', 'pending', 'u1');
    INSERT INTO api_keys (name, token_hash, token_preview, permission, domain, user_id)
        SELECT 'bound by id', '1', 'os_aaa...0001', 'sending_access', upper(id::text), 'u1' FROM domains
            WHERE name = 'Good.example'
        UNION ALL SELECT 'bound by name', '2', 'os_aaa...0002', 'sending_access', ' good.example', 'u1'
        UNION ALL SELECT 'free', '3', 'os_aaa...0003', 'full_access', NULL, 'u1'
        UNION ALL SELECT 'nobody''s', '4', NULL, 'full_access', NULL, NULL;
    INSERT INTO emails ("from", "to", cc, bcc, reply_to, subject, html, user_id, status)
        VALUES ('a@good.example', '["x@a.example"]', '[]', '[]', '[]', 's', 'h', 'u1', 'sent'),
            ('A <a@GOOD.example>', '["x@a.example"]', NULL, 'null', NULL, 's', NULL, 'u1', 'sent'),
            ('a@münchen.example', '["x@a.example"]', NULL, NULL, '["é <a@good.example>"]', 's', NULL, 'u1', 'sent');
"""
_numbers = itertools.count(1)
Values = dict[str, LiteralString]
FROM_BAD: Values = {"from": "'a@bad.example'"}


@dataclasses.dataclass(frozen=True, slots=True)
class Opensend:
    """A database as OpenSend's own migrations leave it, in use, and nothing of ours in it."""

    name: str
    cluster: Cluster
    db: Connection

    @property
    def config(self) -> Config:
        return Config(database=Database(url=self.cluster.url(self.name)), queue=Queue(url=QUEUE))

    def row(self, **values: LiteralString) -> str:
        """Add a row that our rules take, but for these values as SQL; return its id."""
        usual: Values = {"from": "'a@good.example'", "to": """'["x@a.example"]'""", "subject": "''"}
        given: Values = {**usual, "user_id": "'u1'", "status": "'sent'", **values}
        query = sql.SQL("INSERT INTO emails ({}) VALUES ({}) RETURNING id").format(
            sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.SQL, given.values()))
        )
        ((row_id,),) = self.db.execute(query).fetchall()
        return str(row_id)


@pytest.fixture(scope="module")
def _opensend_template(_shared_cluster: Cluster) -> Iterator[str]:
    with psycopg.connect(_shared_cluster.new_database(TEMPLATE), autocommit=True) as connection:
        facts.make(connection)
        connection.execute(HEALTHY)
    yield TEMPLATE
    _shared_cluster.drop_database(TEMPLATE)


@pytest.fixture
def opensend(cluster: Cluster, _opensend_template: str) -> Iterator[Opensend]:
    name = f"before_{next(_numbers)}"
    cluster.new_database(name, template=_opensend_template)
    with psycopg.connect(cluster.here(name), autocommit=True) as connection:
        yield Opensend(name, cluster, connection)
    cluster.drop_database(name)


@pytest.fixture
def monitor(opensend: Opensend) -> Iterator[str]:
    """The URL of a role that may only read, and only what is asked for."""
    opensend.db.execute("""
        CREATE ROLE before_monitor LOGIN PASSWORD 'm';
        ALTER ROLE before_monitor SET default_transaction_read_only = on;
        GRANT SELECT ON emails, api_keys, domains, email_suppressions, usage_periods TO before_monitor""")
    yield opensend.cluster.url(opensend.name, "before_monitor", "m")
    opensend.db.execute("DROP OWNED BY before_monitor; DROP ROLE before_monitor")


def looked_at(config: Config, *only: str, timeout_s: float = 60.0) -> dict[str, Finding]:
    with before_switching(config, timeout_s=timeout_s) as checks:
        return {one.name: one for one in examine(checks, chosen(checks, only))}


def results(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {name: one.result.value for name, one in findings.items() if one.result is not Result.GOOD}


def test_an_opensend_in_order(opensend: Opensend) -> None:
    findings = looked_at(opensend.config)
    assert results(findings) == {}
    version = opensend.db.info.server_version // 10_000
    assert findings["opensend.reachable"].seen == f"PostgreSQL {version}, {opensend.name} as postgres, UTF8"
    assert findings["opensend.snapshot"].seen == "15 tables as of 2026-07-02, exactly"
    assert findings["opensend.keys"].seen == (
        "4 key(s), 2 of them bound to a domain; 1 without a user, which OpenSend refuses too"
    )
    assert findings["opensend.rows"].seen.startswith(
        "of the newest 3 row(s) 0 would have been refused\nnot told by rows"
    )


FAULTS = {
    "column-of-another-type": (
        "ALTER TABLE logs ALTER request_body TYPE text",
        {"opensend.snapshot": "warning", "opensend.tables": "problem", "opensend.migrate": "problem"},
        "logs.request_body is text here, jsonb expected",
    ),
    "column-gone": (
        "ALTER TABLE email_events DROP payload",
        {"opensend.snapshot": "warning", "opensend.tables": "problem", "opensend.migrate": "problem"},
        "email_events.payload is missing here, jsonb expected",
    ),
    "column-that-wants-a-value": (
        "ALTER TABLE webhook_deliveries ADD region text NOT NULL",
        {"opensend.tables": "problem", "opensend.migrate": "problem"},
        "webhook_deliveries.region is not null here, and a row of ours says nothing there",
    ),
    "table-gone": (
        "DROP TABLE topics",
        {"opensend.snapshot": "warning"},
        "topics: there is no such table",
    ),
    "null": (
        "ALTER TABLE plans ALTER slug DROP NOT NULL",
        {"opensend.snapshot": "warning"},
        "plans.slug is null here, not null expected",
    ),
    "default": (
        "ALTER TABLE plans ALTER rate_per_second SET DEFAULT 3",
        {"opensend.snapshot": "warning"},
        "plans.rate_per_second has default 3 here, default 2 expected",
    ),
    "index-of-keys": (
        "DROP INDEX api_keys_token_hash_idx",
        {"opensend.snapshot": "problem"},
        "no unique index on api_keys (token_hash)",
    ),
    "index-of-idempotency-keys": (
        """DROP INDEX emails_user_id_idempotency_key_idx;
            CREATE INDEX emails_user_id_idempotency_key_idx ON emails (user_id, idempotency_key)""",
        {"opensend.snapshot": "problem"},
        "no unique index on emails (user_id, idempotency_key)",
    ),
    "index-of-suppressions": (
        """DROP INDEX email_suppressions_user_email_idx;
            CREATE UNIQUE INDEX ON email_suppressions (user_id, email) WHERE reason = 'manual'""",
        {"opensend.snapshot": "problem"},
        "no unique index on email_suppressions (user_id, email)",
    ),
    "index-of-events": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'email_events_source_id_idx'::regclass",
        {"opensend.snapshot": "problem"},
        "no unique index on email_events (source_id)",
    ),
    "key-of-a-domain-that-is-gone": (
        """UPDATE api_keys SET domain = '6d1c9f5e-0a2b-4c3d-8e4f-5a6b7c8d9e0f', name = E'deploy\\n\\u2028'
            WHERE name = 'bound by id'""",
        {"opensend.keys": "problem"},
        "deploy\ufffd\ufffd (os_aaa...0001): its domain is gone, or another user's",
    ),
    "key-of-another-user's-domain": (
        """UPDATE domains SET user_id = 'u2' WHERE name = 'new.example';
            UPDATE api_keys SET domain = (SELECT id FROM domains WHERE user_id = 'u2') WHERE name = 'bound by name'""",
        {"opensend.keys": "problem"},
        "bound by name (os_aaa...0002): its domain is gone, or another user's",
    ),
    "key-of-a-domain-that-is-not-verified": (
        "UPDATE api_keys SET domain = 'NEW.example' WHERE name = 'bound by name'",
        {"opensend.keys": "problem"},
        "bound by name (os_aaa...0002): new.example is not verified",
    ),
    "key-of-a-domain-that-its-user-never-had": (
        "UPDATE api_keys SET domain = 'other.example' WHERE name = 'bound by name'",
        {"opensend.keys": "problem"},
        "bound by name (os_aaa...0002): other.example is not verified",
    ),
    "key-of-no-domain": (
        "UPDATE api_keys SET domain = 'not a domain' WHERE name = 'bound by name'",
        {"opensend.keys": "problem"},
        "bound by name (os_aaa...0002): not a domain is no domain name",
    ),
    "key-that-opensend-lets-send-from-any": (
        "UPDATE api_keys SET permission = 'full_access' WHERE name = 'bound by name'",
        {"opensend.keys": "warning"},
        "bound by name (os_aaa...0002): full_access, yet held to good.example here",
    ),
    "domain-not-verified-that-mail-came-from": (
        """INSERT INTO emails ("from", "to", subject, user_id, status)
            SELECT 'a@New.example', '["x@a.example"]', '', 'u1', 'sent' FROM generate_series(1, 3)""",
        {"opensend.domains": "problem", "opensend.rows": "problem"},
        "new.example of user u1: 3",
    ),
    "domain-of-two-users": (
        "INSERT INTO domains (name, status, user_id) VALUES ('gOOD.example', 'pending', 'u2')",
        {"opensend.domains": "warning"},
        "good.example: a domain of 2 users",
    ),
    "no-domain": (
        "DELETE FROM emails; UPDATE api_keys SET domain = NULL; UPDATE domains SET status = 'pending'",
        {"opensend.domains": "problem"},
        "none is verified: each message would be refused",
    ),
    "bills": (
        "INSERT INTO usage_periods (user_id, period_start, period_end) VALUES ('u1', now(), now())",
        {"opensend.billing": "warning"},
        "OpenSend seems to bill, and billing is none\nusage_periods has rows",
    ),
    "late": (
        """INSERT INTO emails ("from", "to", subject, user_id, created_at)
            SELECT 'a@good.example', '["x@a.example"]', '', 'u1', now() - n * interval '9 minutes'
            FROM generate_series(1, 3) n""",
        {"opensend.queue": "problem"},
        "2 row(s) `queued` for over ten minutes now",
    ),
}  # fmt: skip


@pytest.mark.altered_tables
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(opensend: Opensend, name: str) -> None:
    statement, expected, line = FAULTS[name]
    opensend.db.execute(statement.encode())
    findings = looked_at(opensend.config)
    assert results(findings) == expected
    assert any(line in findings[check].seen for check in expected), [findings[check].seen for check in expected]
    assert all(findings[check].mend for check in expected)


@pytest.mark.altered_tables
def test_columns_that_are_more_are_named(opensend: Opensend) -> None:
    opensend.db.execute("ALTER TABLE emails ADD priority integer; ALTER TABLE domains ADD note text DEFAULT ''")
    found = looked_at(opensend.config, "opensend.snapshot", "opensend.tables")
    assert results(found) == {}
    assert found["opensend.snapshot"].seen == (
        "15 tables as of 2026-07-02, and 2 column(s) more\ndomains.note\nemails.priority"
    )


def test_an_index_that_is_missing_comes_with_its_statement(opensend: Opensend) -> None:
    opensend.db.execute("DROP INDEX email_events_source_id_idx, emails_user_id_idempotency_key_idx")
    found = looked_at(opensend.config, "opensend.snapshot")["opensend.snapshot"]
    for statement in found.mend.splitlines():
        opensend.db.execute(statement.encode())
    assert results(looked_at(opensend.config)) == {}


# ---------------------------------------------------------------- what answers


def test_a_database_that_does_not_answer(opensend: Opensend) -> None:
    config = dataclasses.replace(opensend.config, database=Database(url="postgresql://x@127.0.0.1:1/x"))
    findings = looked_at(config)
    assert findings.pop("opensend.reachable").result is Result.PROBLEM
    assert {one.seen for one in findings.values()} == {"needs opensend.reachable"}


def test_a_database_without_opensend(opensend: Opensend) -> None:
    opensend.db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    found = looked_at(opensend.config, "opensend.reachable")["opensend.reachable"]
    assert found.result is Result.PROBLEM
    assert "no table api_keys, domains, email_events, email_suppressions, emails" in found.seen


def test_a_database_of_another_encoding(cluster: Cluster, opensend: Opensend) -> None:
    cluster.execute(
        sql.SQL("CREATE DATABASE before_ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    )
    try:
        found = looked_at(dataclasses.replace(opensend.config, database=Database(url=cluster.url("before_ascii"))))
    finally:
        cluster.drop_database("before_ascii")
    assert found["opensend.reachable"].result is Result.PROBLEM
    assert "its encoding is SQL_ASCII, not UTF8" in found["opensend.reachable"].seen


def test_a_server_that_is_too_old(opensend: Opensend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensend_milter.app.switching.OLDEST_SERVER", 99_00_00)
    found = looked_at(opensend.config, "opensend.reachable")["opensend.reachable"]
    assert (found.result, "99 or newer is needed" in found.seen) == (Result.PROBLEM, True)


def test_a_right_that_is_missing_is_named_with_its_grant(opensend: Opensend, monitor: str) -> None:
    opensend.db.execute("REVOKE SELECT ON emails, api_keys FROM before_monitor")
    config = dataclasses.replace(opensend.config, database=Database(url=monitor))
    findings = looked_at(config)
    reachable = findings["opensend.reachable"]
    assert reachable.result is Result.WARNING
    assert reachable.seen.splitlines()[1:] == ["read public.api_keys", "read public.emails"]
    assert findings["opensend.keys"].mend == "GRANT SELECT ON public.api_keys TO before_monitor;"
    assert findings["opensend.rows"].result is Result.PROBLEM
    assert findings["opensend.rows"].mend == "GRANT SELECT ON public.emails TO before_monitor;"
    for statement in reachable.mend.splitlines():
        opensend.db.execute(statement.encode())
    assert results(looked_at(config)) == {"opensend.migrate": "warning"}


def test_columns_are_enough(opensend: Opensend, monitor: str) -> None:
    opensend.db.execute("""REVOKE SELECT ON api_keys FROM before_monitor;
        GRANT SELECT (id, name, token_preview, permission, domain, user_id) ON api_keys TO before_monitor""")
    config = dataclasses.replace(opensend.config, database=Database(url=monitor))
    assert results(looked_at(config)) == {"opensend.migrate": "warning"}


def test_rows_that_are_hidden_are_said_to_be(opensend: Opensend, monitor: str) -> None:
    opensend.db.execute("ALTER TABLE emails ENABLE ROW LEVEL SECURITY")
    config = dataclasses.replace(opensend.config, database=Database(url=monitor))
    found = looked_at(config, "opensend.reachable")["opensend.reachable"]
    assert (found.result, found.seen.splitlines()[1:]) == (Result.WARNING, ["see all rows of public.emails"])


# ---------------------------------------------------------------- db migrate


def test_who_may_not_migrate(opensend: Opensend, monitor: str) -> None:
    config = dataclasses.replace(opensend.config, database=Database(url=monitor))
    found = looked_at(config, "opensend.migrate")["opensend.migrate"]
    assert found.result is Result.WARNING
    assert found.seen.splitlines()[:4] == [
        "`db migrate` cannot be run by this role",
        "not the owner of OpenSend's tables: postgres is",
        "no CREATEROLE",
        "no CREATE on the database",
    ]
    assert found.mend == "opensend-milter db migrate   # with DATABASE_URL of postgres"


def test_an_owner_who_may_make_roles_may_migrate(opensend: Opensend, monitor: str) -> None:
    opensend.db.execute(
        sql.SQL("ALTER ROLE before_monitor CREATEROLE; GRANT CREATE ON DATABASE {} TO before_monitor").format(
            sql.Identifier(opensend.name)
        )
    )
    for table in sorted(facts.opensend().names):
        opensend.db.execute(sql.SQL("ALTER TABLE {} OWNER TO before_monitor").format(sql.Identifier(table)))
    found = looked_at(dataclasses.replace(opensend.config, database=Database(url=monitor)), "opensend.migrate")
    assert results(found) == {}


@pytest.mark.usefixtures("_template")
def test_roles_of_ours_that_are_there(opensend: Opensend) -> None:
    found = looked_at(opensend.config, "opensend.migrate")["opensend.migrate"]
    assert found.result is Result.GOOD
    assert (
        "there already:\n  opensend_body_reader\n  opensend_console\n  opensend_console_actor\n"
        "  opensend_dovecot_auth\n  opensend_http\n  opensend_key_reader\n" in found.seen
    )
    opensend.db.execute("ALTER ROLE opensend_key_reader LOGIN")
    try:
        found = looked_at(opensend.config, "opensend.migrate")["opensend.migrate"]
    finally:
        opensend.db.execute("ALTER ROLE opensend_key_reader NOLOGIN")
    assert found.result is Result.PROBLEM
    assert "opensend_key_reader exists and may log in" in found.seen


# ---------------------------------------------------------------- rows

SUPPRESSED = """INSERT INTO email_suppressions (user_id, email, reason, suppressed_at)
    VALUES ('u1', 's@b.example', 'bounced', now() - interval '1 day'),
        ('u1', 's@xn--mnchen-3ya.example', 'manual', now() - interval '1 day'),
        ('u1', 'later@b.example', 'manual', now() + interval '1 day'),
        ('u2', 'other@b.example', 'manual', now() - interval '1 day')"""
RULED: dict[str, Values] = {
    "from-unverified": {"from": "'a@sub.good.example'"},
    "from-malformed": {"from": "'a@@good.example'"},
    "from-not-one": {"from": "'a@good.example, b@good.example'"},
    "recipient-malformed": {"to": """'["x"]'"""},
    "recipient-suppressed": {"to": """'["S@B.example"]'"""},
    "recipient-suppressed in cc": {"cc": """'["x@a.example", "s@b.example"]'"""},
    "recipient-suppressed in bcc": {"bcc": """'["s@b.example"]'"""},
    "recipient-suppressed in another spelling": {"bcc": """'["s@münchen.example"]'"""},
    "too-many-recipients": {"to": "(SELECT jsonb_agg(n || '@a.example') FROM generate_series(1, 40) n)",
                            "cc": "(SELECT jsonb_agg(n || '@b.example') FROM generate_series(1, 11) n)"},
    "too-many-recipients after one many times": {
        "to": "(SELECT jsonb_agg('x@a.example'::text) FROM generate_series(1, 60))",
        "cc": "(SELECT jsonb_agg(n || '@b.example') FROM generate_series(1, 50) n)",
    },
    "sandbox-mixed": {"cc": """'["delivered@resend.dev"]'"""},
    "cannot-carry": {"bcc": """'["ü@a.example"]'"""},
    "cannot-carry a reply": {"reply_to": """'["ü@a.example"]'"""},
    "attachments-too-large": {
        "attachments": "jsonb_build_array(jsonb_build_object('content', (SELECT string_agg(md5(n::text), '')"
        " FROM generate_series(1, 1000) n)))"
    },
    "too-large": {"html": "repeat('x', 40001)"},
    "key-revoked": {"user_id": "NULL"},
}  # fmt: skip
SMALL = Size(max_message_bytes=40_000, max_attachment_bytes=20_000)


@pytest.mark.parametrize("name", RULED)
def test_a_row_that_a_rule_would_have_refused(opensend: Opensend, name: str) -> None:
    opensend.db.execute(SUPPRESSED)
    row_id = opensend.row(**RULED[name])
    config = dataclasses.replace(opensend.config, size=SMALL)
    found = looked_at(config, "opensend.rows")["opensend.rows"]
    assert found.result is Result.PROBLEM
    assert found.seen.splitlines()[:-1] == [
        "of the newest 4 row(s) 1 would have been refused",
        f"{name.partition(' ')[0]}: 1, such as",
        f"  {row_id}",
    ]
    assert found.mend.startswith(f"{name.partition(' ')[0]}: ")


TAKEN: dict[str, Values] = {
    "suppressed afterwards": {"to": """'["later@b.example"]'"""},
    "suppressed by another user": {"to": """'["other@b.example"]'"""},
    "fifty recipients": {"to": "(SELECT jsonb_agg(n || '@a.example') FROM generate_series(1, 50) n)",
                         "cc": "(SELECT jsonb_agg(n || '@a.example') FROM generate_series(1, 50) n)"},
    "the sandbox alone": {"to": """'["delivered@resend.dev", "delivered+1@resend.dev"]'"""},
    "a long line": {"html": "repeat('x', 30000)"},
    "a time that Python does not know": {"created_at": "'infinity'"},
    "a year that Python does not know": {"created_at": "'20000-01-01'"},
    "a line break in From": {"from": "E'A\\r\\nB <a@good.example>'"},
    "a domain that is stored with U-labels": {"from": "'a@xn--zrich-kva.example'"},
    "another domain in U-labels": {"to": """'["x@ü.example"]'"""},
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_a_row_that_no_rule_would_have_refused(opensend: Opensend, name: str) -> None:
    opensend.db.execute(SUPPRESSED)
    opensend.row(**TAKEN[name])
    found = looked_at(dataclasses.replace(opensend.config, size=SMALL), "opensend.rows")["opensend.rows"]
    assert (found.result, found.seen.splitlines()[1:]) == (
        Result.GOOD,
        ["not told by rows: limits of keys, repetitions, exact size and form"],
    )


ODD: dict[str, Values] = {
    "to is a text": {"to": """'"x@a.example"'"""},
    "to is an object": {"to": """'{"x@a.example": 1}'"""},
    "to is null": {"to": "'null'"},
    "to holds a number": {"to": """'["x@a.example", 5]'"""},
    "to holds null": {"to": """'[null]'"""},
    "to holds what is deep": {"to": "(repeat('[', 5000) || repeat(']', 5000))::jsonb"},
    "to is empty": {"to": "'[]'"},
    "cc is a number": {"cc": "'1'"},
    "bcc holds an object": {"bcc": "'[{}]'"},
    "reply_to is a text": {"reply_to": """'"x@a.example"'"""},
    "reply_to holds a number": {"reply_to": "'[1]'"},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_row_of_odd_values_is_counted(opensend: Opensend, name: str) -> None:
    row_id = opensend.row(**ODD[name])
    found = looked_at(opensend.config, "opensend.rows")["opensend.rows"]
    assert found.result is Result.WARNING
    assert found.seen.splitlines()[:-1] == [
        "of the newest 4 row(s) 0 would have been refused",
        "cannot be read: 1, such as",
        f"  {row_id}",
    ]


def test_a_suppressed_recipient_may_be_left_out(opensend: Opensend) -> None:
    opensend.db.execute(SUPPRESSED)
    row_id = opensend.row(cc="""'["s@b.example"]'""")
    config = dataclasses.replace(opensend.config, policy=Policy(on_suppressed="drop-recipient"))
    found = looked_at(config, "opensend.rows")["opensend.rows"]
    assert found.result is Result.WARNING
    assert found.seen.splitlines()[1:3] == ["without a suppressed recipient: 1, such as", f"  {row_id}"]


def test_examples_are_few(opensend: Opensend) -> None:
    for _ in range(7):
        opensend.row(**FROM_BAD)
    found = looked_at(opensend.config, "opensend.rows")["opensend.rows"]
    assert found.seen.count("\n  ") == 5
    assert "from-unverified: 7, such as" in found.seen


def test_domains_that_need_not_be_verified(opensend: Opensend) -> None:
    opensend.row(**FROM_BAD)
    config = dataclasses.replace(opensend.config, policy=Policy(sender_domains="restricted-only"))
    assert results(looked_at(config)) == {"opensend.domains": "skipped"}


def test_the_newest_rows_are_read_by_their_index_and_never_their_content(opensend: Opensend) -> None:
    with psycopg.connect(opensend.cluster.here(opensend.name), autocommit=True) as other:
        other.execute("""
        ALTER TABLE emails SET (autovacuum_enabled = false, toast.autovacuum_enabled = false);
        INSERT INTO emails ("from", "to", subject, user_id, status, created_at, html, attachments)
        SELECT 'a@good.example', '["x@a.example"]', '', 'u1', 'sent', now() - n * interval '1 second', long.text,
            jsonb_build_array(jsonb_build_object('content', long.text))
        FROM generate_series(1, 12000) n,
            LATERAL (SELECT CASE WHEN n % 1000 = 0 THEN (SELECT string_agg(md5((n * i)::text), '')
                FROM generate_series(1, 1000) i) END AS text) long;
        ANALYZE emails""")
    wait_for_end(opensend)
    rows = opensend.db.execute(
        "EXPLAIN (COSTS OFF) " + statements("switching")["newest"], {"rows": 10_000, "recipients": 51}
    )
    plan = "\n".join(line for (line,) in rows)
    assert "Index Scan Backward using emails_created_at_idx" in plan
    assert "Seq Scan on emails" not in plan
    before = blocks(opensend)
    found = looked_at(opensend.config, "opensend.rows")["opensend.rows"]
    assert found.seen.startswith("of the newest 10000 row(s) 0 ")
    wait_for_end(opensend)
    rows_read, content_read = (after - first for after, first in zip(blocks(opensend), before, strict=True))
    assert (rows_read > 0, content_read) == (True, 0)


def blocks(opensend: Opensend) -> tuple[int, int]:
    """Return how many blocks of rows, and of long values, were looked at so far."""
    opensend.db.execute("SELECT pg_stat_clear_snapshot()")
    ((rows, content),) = opensend.db.execute("""
        SELECT pg_stat_get_blocks_fetched(oid), pg_stat_get_blocks_fetched(reltoastrelid)
        FROM pg_class WHERE oid = 'emails'::regclass""")
    return rows, content


def wait_for_end(opensend: Opensend) -> None:
    """Wait until the other session is gone: only then it has said all that it read."""
    asked = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
    while opensend.db.execute(asked).fetchone() != (0,):
        opensend.db.execute("SELECT pg_sleep(0.02)")


# ---------------------------------------------------------------- billing, queue


def billed(opensend: Opensend) -> Config:
    return dataclasses.replace(opensend.config, profile="opensend", billing="stripe")


def test_who_pays_may_send(opensend: Opensend) -> None:
    assert looked_at(billed(opensend), "opensend.billing")["opensend.billing"].seen == (
        "1 of 1 who sent lately would be refused\nuser u1: none"
    )
    opensend.db.execute("""WITH plan AS (
            INSERT INTO plans (slug, name, monthly_price_cents) VALUES ('pro', 'Pro', 2000) RETURNING id)
        INSERT INTO subscriptions (user_id, plan_id, status) SELECT 'u1', id, 'active' FROM plan""")
    assert results(looked_at(billed(opensend))) == {}
    opensend.db.execute("UPDATE plans SET monthly_price_cents = 0")
    found = looked_at(billed(opensend), "opensend.billing")["opensend.billing"]
    assert (found.result, found.seen.splitlines()[1]) == (Result.PROBLEM, "user u1: legacy_free")


@pytest.mark.altered_tables
def test_billing_without_its_tables(opensend: Opensend) -> None:
    opensend.db.execute("DROP TABLE subscriptions, plans, usage_periods")
    findings = looked_at(billed(opensend), "opensend.tables", "opensend.billing")
    assert results(findings) == {"opensend.tables": "problem", "opensend.billing": "problem"}
    assert 'relation "public.subscriptions" does not exist' in findings["opensend.billing"].seen
    assert looked_at(opensend.config, "opensend.billing")["opensend.billing"].result is Result.GOOD


def test_without_a_queue_the_ingester_must_poll(opensend: Opensend) -> None:
    config = dataclasses.replace(opensend.config, queue=Queue())
    found = looked_at(config, "opensend.queue")["opensend.queue"]
    assert (found.result, "the ingester must poll" in found.seen.replace("OpenSend's", "the")) == (Result.WARNING, True)
    opensend.row(status="'queued'", created_at="now() - interval '1 hour'")
    found = looked_at(config, "opensend.queue")["opensend.queue"]
    assert (found.result, found.seen.splitlines()[-1]) == (
        Result.PROBLEM,
        "1 row(s) `queued` for over ten minutes now",
    )


# ---------------------------------------------------------------- one transaction that cannot write


def test_what_takes_too_long_is_a_finding_and_the_rest_is_asked(opensend: Opensend) -> None:
    names = [f"opensend.{name}" for name in ("reachable", "domains", "rows", "keys", "billing")]
    timeout_s = scaled_s(2)
    with logged(opensend) as said, before_switching(opensend.config, timeout_s=timeout_s) as checks:
        reachable = list(examine(checks, chosen(checks, names[:1])))
        with psycopg.connect(opensend.cluster.here(opensend.name)) as other:
            other.execute("LOCK TABLE emails IN ACCESS EXCLUSIVE MODE")
            late = {one.name: one for one in [*reachable, *examine(checks, chosen(checks, names[1:]))]}
    assert results(late) == {"opensend.domains": "warning", "opensend.rows": "warning"}
    assert late["opensend.rows"].seen == f"no answer within {timeout_s:g} s"
    assert sum(one.startswith("SELECT e.id::text") for one in said) == 1


def test_a_connection_that_is_lost_is_a_finding(opensend: Opensend) -> None:
    with before_switching(opensend.config) as checks:
        (first,) = examine(checks, chosen(checks, ["opensend.reachable"]))
        assert first.result is Result.GOOD
        opensend.db.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'opensend-doctor'"
        )
        left = chosen(checks, ["opensend.keys", "opensend.queue"])
        texts = {one.name: one.seen for one in examine([dataclasses.replace(one, needs="") for one in left], left)}
    assert set(texts.values()) == {"the connection to the database was lost"}


def dumped(opensend: Opensend) -> str:
    """Return all that is in the database; a newer pg_dump makes up a word of its own each time."""
    said = subprocess.run(
        [program("pg_dump"), f"--dbname={opensend.cluster.url(opensend.name)}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return "\n".join(line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


@contextmanager
def logged(opensend: Opensend) -> Iterator[list[str]]:
    """Yield a list that holds, at the end, what each session that began meanwhile was told to do."""
    log = opensend.cluster.directory / "log"
    start = log.stat().st_size
    found: list[str] = []
    yield found
    wait_for_end(opensend)
    text = log.read_bytes()[start:].decode()
    by_session: dict[str, list[str]] = {}
    for pid, statement in re.findall(
        r"^\S+ \S+ \S+ \[(\d+)\] (?:LOG:  (?:statement|execute [^:]*):|STATEMENT: ) (\S+[^\n]*)", text, re.MULTILINE
    ):
        by_session.setdefault(pid, []).append(statement)
    for said in by_session.values():
        if any("statement_timeout" in one for one in said):
            found += said


def test_it_is_one_transaction_that_cannot_write(opensend: Opensend) -> None:
    opensend.db.execute(SUPPRESSED)
    opensend.row(**FROM_BAD, cc="""'["s@b.example"]'""")
    before = dumped(opensend)
    with logged(opensend) as said:
        looked_at(opensend.config)
    assert dumped(opensend) == before
    begun = said[1:] if said[0] == "BEGIN" else said
    transactions = [one for one in begun if one.startswith(("BEGIN", "START"))]
    assert transactions == ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]
    words = {one.split()[0] for one in begun}
    assert words <= {"BEGIN", "SELECT", "WITH", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT"}
    inside = begun[begun.index(transactions[0]) :]
    assert not {"COMMIT", "ROLLBACK"} & set(inside)


# ---------------------------------------------------------------- the command


def run(url: str, path: Path, *words: str) -> Run:
    path.write_text("profile: opensend\n")
    environment = {"DATABASE_URL": url, "OPENSEND_MILTER_CONFIG": str(path), "BACKGROUND_JOBS_QUEUE_URL": QUEUE}
    return CliRunner().invoke(cli.app_of(["doctor"]), ["doctor", "--before-opensend", *words], env=environment)


def test_a_role_that_may_only_read_is_enough(opensend: Opensend, monitor: str, tmp_path: Path) -> None:
    opensend.row(**FROM_BAD)
    before = dumped(opensend)
    done = run(monitor, tmp_path / "c.yaml", "--all")
    assert done.exit_code == 1, done.output
    assert dumped(opensend) == before
    assert "PROBLEM  opensend.rows: of the newest 4 row(s) 1 would have been refused\n" in done.stdout
    assert "           from-unverified: 1, such as\n             " in done.stdout
    assert "           mend: from-unverified: as opensend.domains says\n" in done.stdout
    assert "ok       opensend.keys: " in done.stdout


def test_without_a_problem_the_exit_code_says_so(opensend: Opensend, tmp_path: Path) -> None:
    done = run(opensend.config.database.url, tmp_path / "c.yaml", "--json", "--only", "opensend")
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["problems"], {one["result"] for one in told["findings"]}) == (0, {"good"})
    assert len(told["findings"]) == 9


@pytest.mark.parametrize(
    "other", ["--probe", "--checklist", "--key-file=k", "--postfix-dir=p", "--nameserver=127.0.0.1"]
)
def test_it_looks_at_no_host(opensend: Opensend, tmp_path: Path, other: str) -> None:
    done = run(opensend.config.database.url, tmp_path / "c.yaml", other)
    assert (done.exit_code, "--before-opensend goes with --only" in done.stderr) == (64, True)


def test_every_line_but_a_statement_fits_a_terminal(opensend: Opensend, tmp_path: Path) -> None:
    opensend.db.execute(SUPPRESSED)
    for values in RULED.values():
        opensend.row(**values)
    opensend.db.execute("""
        UPDATE api_keys SET domain = 'new.example', permission = 'full_access' WHERE name = 'bound by name';
        INSERT INTO domains (name, status, user_id) VALUES ('good.example', 'pending', 'u2');
        INSERT INTO usage_periods (user_id, period_start, period_end) VALUES ('u1', now(), now());
        UPDATE emails SET status = 'queued', created_at = now() - interval '1 hour'""")
    done = run(opensend.config.database.url, tmp_path / "c.yaml", "--all")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_a_check_of_the_host_is_none_of_these(opensend: Opensend) -> None:
    with before_switching(opensend.config) as checks, pytest.raises(UsageError, match="the parts are opensend"):
        chosen(checks, ["postfix"])


def test_every_check_is_explained_in_the_documentation(opensend: Opensend) -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    with before_switching(opensend.config) as checks:
        assert [check.name for check in checks if f"| `{check.name}` | {check.why} |" not in page] == []
