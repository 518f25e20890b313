"""What each process may do in the database, and what it must not."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg import errors, sql

from opensend_milter.adapters.postgres.link import Connection, Role, StatementFile, statements
from opensend_milter.adapters.schema import migrations
from opensend_milter.adapters.schema.roles import CONNECTION_LIMITS, LOGIN_ROLES
from tests.integration.private_postgres import Database

EMAIL = """INSERT INTO public.emails (id, "from", "to", subject, user_id)
    VALUES (gen_random_uuid(), 'a@b.example', '[]', '', 'u')"""
SUBMISSION = """INSERT INTO opensend_milter.submissions VALUES
    (gen_random_uuid(), now(), 'u', gen_random_uuid(), 'smtp', 'Q', '::1', '', '', 'a@b.example', '{}', NULL, 1, 'x')"""
CHUNK = "INSERT INTO opensend_milter.raw_chunks VALUES (gen_random_uuid(), 0, 'x')"
JOB = "INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (gen_random_uuid(), 'u')"
REFUSAL = """INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,
    key_id, sender, recipients, size_bytes) VALUES ('r', 550, '5.7.1', '', 'smtp', 'Q', '::1', '', '', '{}', 1)"""
EVENT = """INSERT INTO public.email_events (type, payload, source_id) VALUES ('sent', '{}', 's')
    ON CONFLICT (source_id) DO NOTHING"""
KEY_ID = "SELECT opensend_milter.key_id('x')"
LETTERS = "SELECT * FROM opensend_milter.letters('x', ARRAY[gen_random_uuid()], true)"
MAY_CHANGE = "SELECT opensend_milter.may_change('x', gen_random_uuid())"
CANCEL = "SELECT opensend_milter.cancel('x', gen_random_uuid())"
RESCHEDULE = "SELECT opensend_milter.reschedule('x', gen_random_uuid(), now())"
ROW_DIGEST = "SELECT opensend_milter.row_digest(gen_random_uuid())"
REFUSED = "SELECT * FROM opensend_milter.refusal('7K2MQ0X9TD', 'x')"
OWNERSHIP = "SELECT opensend_milter.ownership('u', 'example.org')"

INTAKE_TABLES = {
    "public.api_keys": {"SELECT", "UPDATE"},
    "public.domains": {"SELECT"},
    "public.email_suppressions": {"SELECT"},
    "public.emails": {"SELECT", "INSERT", "UPDATE"},
    "public.email_events": {"INSERT"},
    "public.webhooks": {"SELECT"},
    "public.webhook_deliveries": {"INSERT"},
    "public.logs": {"INSERT"},
    "opensend_milter.submissions": {"SELECT", "INSERT", "UPDATE"},
    "opensend_milter.fingerprints": {"SELECT", "INSERT", "DELETE"},
    "opensend_milter.pieces": {"SELECT", "INSERT", "DELETE"},
    "opensend_milter.key_settings": {"SELECT"},
    "opensend_milter.odd_spellings": {"SELECT"},
    "opensend_milter.raw_chunks": {"INSERT"},
    "opensend_milter.jobs": {"INSERT"},
    "opensend_milter.refusals": {"INSERT"},
    "opensend_milter.domain_settings": {"SELECT"},
    "opensend_milter.rate_buckets": {"SELECT", "INSERT", "UPDATE"},
    "opensend_milter.key_usage": {"SELECT", "INSERT", "UPDATE"},
}
SEARCH = tuple(f"opensend_milter.search{part}" for part in ("", "_stretches", "_progress"))
READERS: tuple[Role, ...] = ("opensend_reader", "opensend_body_reader", "opensend_console")
LOOKS = {
    table: {"SELECT"}
    for table in (
        *("public.emails", "public.email_events", "public.email_suppressions", "public.api_keys", "public.domains"),
        *("public.webhooks", "public.webhook_deliveries", "opensend_milter.submissions", "opensend_milter.jobs"),
        *("opensend_milter.refusals", "opensend_milter.recipient_results", "opensend_milter.domain_settings"),
        *("opensend_milter.odd_spellings", *SEARCH),
    )
}
MAY: dict[Role, dict[str, set[str]]] = {
    "opensend_reader": LOOKS,
    "opensend_body_reader": LOOKS | {"opensend_milter.raw_chunks": {"SELECT"}},
    "opensend_console": LOOKS
    | {
        "opensend_milter.key_settings": {"SELECT"},
        "opensend_milter.key_usage": {"SELECT"},
        "opensend_milter.webhook_settings": {"SELECT"},
        "opensend_milter.console_users": {"SELECT"},
        "opensend_milter.console_sessions": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.console_views": {"INSERT"},
        "opensend_milter.findings": {"SELECT"},
        "opensend_milter.console_actions": {"SELECT"},
    },
    "opensend_console_actor": {},
    "opensend_dovecot_auth": {},
    "opensend_milter": INTAKE_TABLES,
    "opensend_http": INTAKE_TABLES
    | {
        "public.email_events": {"SELECT", "INSERT"},
        "public.webhook_deliveries": {"SELECT", "INSERT"},
        "opensend_milter.feedback": {"INSERT"},
        "opensend_milter.secrets": {"SELECT"},
        "opensend_milter.recipient_results": {"SELECT"},
        "opensend_milter.jobs": {"SELECT", "INSERT"},
        "opensend_milter.refusals": {"SELECT", "INSERT"},
        **{table: {"SELECT"} for table in SEARCH},
    },
    "opensend_worker": {
        "public.emails": {"SELECT", "UPDATE"},
        "public.email_events": {"SELECT", "INSERT"},
        "public.email_suppressions": {"SELECT", "INSERT", "UPDATE"},
        "public.domains": {"SELECT"},
        "public.webhooks": {"SELECT"},
        "public.webhook_deliveries": {"SELECT", "INSERT", "UPDATE"},
        "opensend_milter.submissions": {"SELECT", "UPDATE"},
        "opensend_milter.pieces": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.raw_chunks": {"SELECT", "DELETE"},
        "opensend_milter.domain_settings": {"SELECT"},
        "opensend_milter.webhook_settings": {"SELECT"},
        "opensend_milter.recipient_results": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "opensend_milter.soft_bounces": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "opensend_milter.feedback": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.key_secrets": {"SELECT", "DELETE"},
        "opensend_milter.rate_buckets": {"SELECT", "DELETE"},
        "opensend_milter.key_usage": {"SELECT", "DELETE"},
        "opensend_milter.secrets": {"SELECT"},
        "opensend_milter.jobs": {"SELECT", "UPDATE", "DELETE"},
        "opensend_milter.refusals": {"SELECT", "DELETE"},
        "opensend_milter.fingerprints": {"SELECT", "DELETE"},
        "opensend_milter.row_digests": {"SELECT", "DELETE"},
        "opensend_milter.odd_spellings": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.lane_answers": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.migrations": {"SELECT"},
        "public.api_keys": {"SELECT"},
        "opensend_milter.search": {"SELECT", "INSERT", "DELETE", "TRUNCATE"},
        "opensend_milter.search_stretches": {"SELECT", "INSERT", "UPDATE", "TRUNCATE"},
        "opensend_milter.search_progress": {"SELECT", "UPDATE"},
        "opensend_milter.findings": {"SELECT", "INSERT", "DELETE"},
        "opensend_milter.console_views": {"SELECT", "DELETE"},
        "opensend_milter.console_actions": {"SELECT", "DELETE"},
    },
}
ACTS = {
    "public.emails": {"SELECT", "UPDATE"},
    "public.email_events": {"SELECT", "INSERT"},
    "public.email_suppressions": {"SELECT", "INSERT", "UPDATE"},
    "public.domains": {"SELECT"},
    "public.webhooks": {"SELECT"},
    "public.webhook_deliveries": {"INSERT"},
    "opensend_milter.submissions": {"SELECT", "UPDATE"},
    "opensend_milter.jobs": {"SELECT", "INSERT", "UPDATE", "DELETE"},
    "opensend_milter.recipient_results": {"SELECT", "DELETE"},
    "opensend_milter.domain_settings": {"SELECT"},
    "opensend_milter.odd_spellings": {"SELECT", "INSERT"},
    "opensend_milter.console_actions": {"INSERT"},
}
"""What `opensend_console_actor` may while the console has actions."""

INTAKE_WORKS = [
    "SELECT id, user_id, permission, domain FROM public.api_keys",
    "SELECT id, name, status, user_id FROM public.domains",
    "SELECT user_id, email, reason FROM public.email_suppressions",
    f"{EMAIL}; {SUBMISSION}; {CHUNK}; {JOB}; {REFUSAL}",
    ROW_DIGEST,
]
WORKS: list[tuple[Role, str]] = [
    ("opensend_dovecot_auth", KEY_ID),
    ("opensend_http", KEY_ID),
    ("opensend_console", KEY_ID),
    *((role, OWNERSHIP) for role in ("opensend_console", "opensend_worker")),
    ("opensend_http", REFUSED),
    *(("opensend_milter", statement) for statement in INTAKE_WORKS),
    *(("opensend_http", statement) for statement in INTAKE_WORKS),
    ("opensend_worker", "SELECT id, status, user_id FROM public.emails WHERE status = 'queued' FOR UPDATE SKIP LOCKED"),
    ("opensend_worker", "UPDATE public.emails SET status = 'sent', sent_at = now() WHERE id = gen_random_uuid()"),
    ("opensend_worker", "UPDATE public.emails SET attachments = '[]' WHERE NOT attachments @? '$[*].content'"),
    ("opensend_worker", EVENT),
    ("opensend_worker", "SELECT * FROM opensend_milter.submissions JOIN opensend_milter.raw_chunks USING (email_id)"),
    ("opensend_worker", "SELECT email_id FROM opensend_milter.jobs FOR UPDATE SKIP LOCKED"),
    ("opensend_worker", "UPDATE opensend_milter.jobs SET state = 'claimed', attempts = attempts + 1"),
    ("opensend_worker", "DELETE FROM opensend_milter.jobs"),
    ("opensend_worker", "DELETE FROM opensend_milter.raw_chunks"),
    ("opensend_worker", "SELECT secret FROM opensend_milter.secrets"),
    ("opensend_http", "SELECT secret FROM opensend_milter.secrets"),
    (
        "opensend_http",
        (
            "INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)"
            " VALUES ('open', 'x', gen_random_uuid(), '{}')"
        ),
    ),
    ("opensend_worker", "DELETE FROM opensend_milter.refusals WHERE refused_at < now()"),
    *(("opensend_http", statement) for statement in (LETTERS, CANCEL, RESCHEDULE)),
]

FILLING = [
    "CREATE TEMP TABLE mine (id int)",
    "SELECT lo_creat(-1)",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
]
EVERYBODY = [
    "SELECT token_hash FROM public.api_keys",
    "UPDATE public.api_keys SET permission = 'full_access'",
    "DELETE FROM public.email_suppressions",
    "UPDATE public.domains SET status = 'verified'",
    "DELETE FROM public.emails",
    'SELECT * FROM public."user"',
    "SELECT signing_secret_enc FROM public.webhooks",
    "SELECT * FROM opensend_milter.migrations",
    "CREATE TABLE public.mine (id int)",
    "CREATE TABLE opensend_milter.mine (id int)",
    "TRUNCATE opensend_milter.refusals",
    "SET ROLE opensend_key_reader",
    "SET ROLE postgres",
    "ALTER ROLE opensend_worker SUPERUSER",
    "CREATE ROLE mine",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    *FILLING,
]
INTAKE_NEVER = [
    "SELECT * FROM public.api_keys",
    "UPDATE public.emails SET status = 'sent'",
    "UPDATE public.api_keys SET domain = NULL",
    "UPDATE opensend_milter.key_settings SET on_suppressed = NULL",
    "SELECT * FROM public.logs",
    "SELECT bytes FROM opensend_milter.raw_chunks",
    "SELECT digest FROM opensend_milter.row_digests",
    "SELECT * FROM opensend_milter.submissions",
    "DELETE FROM opensend_milter.jobs",
    "INSERT INTO public.email_suppressions (user_id, email, reason) VALUES ('u', 'x', 'manual')",
]
ACTED = """INSERT INTO opensend_milter.console_actions (actor, client_address, action, email_id, outcome, form)
    VALUES ('a', '::1', 'retry', gen_random_uuid(), 'done', gen_random_uuid())"""
ACTING = [
    "UPDATE public.emails SET status = 'queued' WHERE id = gen_random_uuid()",
    "DELETE FROM opensend_milter.jobs WHERE email_id = gen_random_uuid()",
    "INSERT INTO public.email_suppressions (user_id, email, reason) VALUES ('u', 'x', 'manual')",
    ACTED,
]
READS = [
    'SELECT "from" FROM public.emails',
    'SELECT "to" FROM public.emails',
    "SELECT subject FROM public.emails",
    "SELECT text FROM public.emails",
    "SELECT bytes FROM opensend_milter.raw_chunks",
    "SELECT recipients FROM opensend_milter.submissions",
    "SELECT id FROM public.api_keys",
    "SELECT url FROM public.webhooks",
    "SELECT * FROM opensend_milter.console_sessions",
    "SELECT digest FROM opensend_milter.console_users",
    "SELECT actor FROM opensend_milter.console_actions",
]
"""Of what is not needed to act."""
NEVER: list[tuple[Role, str]] = [
    *((role, statement) for role in LOGIN_ROLES for statement in EVERYBODY),
    *((role, "SELECT token_preview FROM public.api_keys") for role in LOGIN_ROLES if role != "opensend_console"),
    *((role, "SELECT html FROM public.emails") for role in LOGIN_ROLES if role != "opensend_body_reader"),
    *((role, "SELECT token_hash FROM opensend_milter.refusals") for role in READERS),
    *((role, "SELECT response_body FROM public.webhook_deliveries") for role in READERS),
    *((role, "SELECT secret FROM opensend_milter.secrets") for role in READERS),
    *(
        (role, statement)
        for role in ("opensend_reader", "opensend_console")
        for statement in (
            "SELECT headers FROM public.emails",
            "SELECT text FROM public.emails",
            "SELECT attachments FROM public.emails",
            "SELECT document FROM public.emails",
            "SELECT bytes FROM opensend_milter.raw_chunks",
        )
    ),
    *(
        ("opensend_console", statement)
        for statement in (
            "SELECT token_hash FROM opensend_milter.key_secrets",
            "SELECT viewer FROM opensend_milter.console_views",
            "DELETE FROM opensend_milter.console_views",
            "UPDATE opensend_milter.console_views SET viewer = 'nobody'",
            "INSERT INTO opensend_milter.console_users VALUES ('me', 'x', 'x')",
            "UPDATE opensend_milter.console_users SET digest = 'x'",
            "UPDATE opensend_milter.console_sessions SET expires_at = 'infinity'",
            "UPDATE public.emails SET status = 'sent'",
            "DELETE FROM opensend_milter.jobs",
            "UPDATE opensend_milter.jobs SET not_before = now()",
            "INSERT INTO public.email_suppressions (user_id, email, reason) VALUES ('u', 'x', 'manual')",
            "DELETE FROM opensend_milter.console_actions",
            "SET ROLE opensend_console_actor",
            ACTED,
        )
    ),
    *(("opensend_console_actor", statement) for statement in (*READS, *ACTING)),
    *(("opensend_milter", statement) for statement in INTAKE_NEVER),
    *(("opensend_http", statement) for statement in INTAKE_NEVER),
    *((role, MAY_CHANGE) for role in LOGIN_ROLES),
    *(
        (role, statement)
        for role in LOGIN_ROLES
        if role != "opensend_http"
        for statement in (LETTERS, CANCEL, RESCHEDULE)
    ),
    *(
        ("opensend_http", statement)
        for statement in (
            "UPDATE public.emails SET scheduled_at = now()",
            "UPDATE opensend_milter.jobs SET not_before = now()",
            "UPDATE opensend_milter.submissions SET changed_at = now()",
            "SELECT text FROM public.emails",
            "SELECT tags FROM public.emails",
        )
    ),
    ("opensend_milter", "SELECT subject FROM public.emails"),
    ("opensend_milter", "SELECT user_id FROM public.email_events"),
    ("opensend_milter", "SELECT rule FROM opensend_milter.refusals"),
    ("opensend_http", "SELECT headers FROM public.emails"),
    ("opensend_http", "SELECT response_body FROM public.webhook_deliveries"),
    ("opensend_milter", KEY_ID),
    ("opensend_worker", KEY_ID),
    ("opensend_worker", ROW_DIGEST),
    ("opensend_dovecot_auth", ROW_DIGEST),
    *((role, REFUSED) for role in LOGIN_ROLES if role != "opensend_http"),
    *((role, OWNERSHIP) for role in LOGIN_ROLES if role not in {"opensend_console", "opensend_worker"}),
    ("opensend_http", "SELECT token_hash FROM opensend_milter.refusals"),
    ("opensend_http", "SELECT from_domain FROM opensend_milter.refusals"),
    ("opensend_worker", "SELECT digest FROM opensend_milter.row_digests"),
    ("opensend_dovecot_auth", "SELECT id FROM public.api_keys"),
    ("opensend_dovecot_auth", "SELECT 1 FROM public.emails"),
    ("opensend_worker", "SELECT user_id FROM public.api_keys"),
    (
        "opensend_worker",
        "INSERT INTO opensend_milter.fingerprints VALUES (gen_random_uuid(), 'x', gen_random_uuid(), now())",
    ),
    ("opensend_worker", EMAIL),
    ("opensend_worker", "UPDATE public.emails SET \"to\" = '[]'"),
    ("opensend_worker", JOB),
    ("opensend_worker", "SELECT * FROM opensend_milter.refusals"),
    ("opensend_worker", "SELECT viewer FROM opensend_milter.console_views"),
    ("opensend_worker", "DELETE FROM public.email_events"),
    ("opensend_worker", "SELECT token_hash FROM public.api_keys"),
    ("opensend_http", "SELECT * FROM opensend_milter.feedback"),
    ("opensend_milter", "SELECT secret FROM opensend_milter.secrets"),
    ("opensend_dovecot_auth", "SELECT secret FROM opensend_milter.secrets"),
]


def rights_of(database: Database, role: Role) -> dict[str, set[str]]:
    with database.connect() as connection:
        rows = connection.execute(
            """SELECT c.relnamespace::regnamespace || '.' || c.relname, p
            FROM pg_class c,
                unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
            WHERE c.relkind = 'r' AND c.relnamespace IN ('public'::regnamespace, 'opensend_milter'::regnamespace)
                AND (has_table_privilege(%(role)s, c.oid, p) OR p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                    AND has_any_column_privilege(%(role)s, c.oid, p))""",
            {"role": role},
        ).fetchall()
    found: dict[str, set[str]] = {}
    for table, privilege in rows:
        found.setdefault(table, set()).add(privilege)
    return found


@pytest.mark.parametrize("role", LOGIN_ROLES)
def test_each_role_has_these_rights_and_no_others(database: Database, role: Role) -> None:
    assert rights_of(database, role) == MAY[role]


def test_who_acts_from_the_console_may_do_so_while_it_is_switched_on(database: Database) -> None:
    """And then no more than that; what is off again is taken back. The console's other role gains nothing."""
    migrations.init(database.url, database.password_dir, actions=True)
    assert rights_of(database, "opensend_console_actor") == ACTS
    assert rights_of(database, "opensend_console") == MAY["opensend_console"]
    with database.connect("opensend_console_actor") as connection:
        assert_may(connection, ACTING)
        assert holes_of(connection, [*EVERYBODY, *READS]) == []
        for change in (
            "UPDATE public.emails SET subject = ''",
            "UPDATE opensend_milter.submissions SET key_id = gen_random_uuid()",
            "UPDATE opensend_milter.jobs SET user_id = 'u'",
            "DELETE FROM opensend_milter.console_actions",
            "UPDATE opensend_milter.console_actions SET actor = 'nobody'",
            "DELETE FROM public.email_suppressions",
            "INSERT INTO opensend_milter.console_views DEFAULT VALUES",
        ):
            assert holes_of(connection, [change]) == []
    with database.connect("opensend_console") as connection:
        assert holes_of(connection, ACTING) == []
    migrations.init(database.url, database.password_dir)
    assert rights_of(database, "opensend_console_actor") == {}


def test_all_roles_together_leave_the_administrator_a_connection() -> None:
    """Of the 100 that Postgres has unless it is told otherwise."""
    assert sum(CONNECTION_LIMITS.values()) < 100


def assert_may(connection: Connection, some: list[str]) -> None:
    for statement in some:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())


def holes_of(connection: Connection, some: list[str]) -> list[str]:
    """Return what it should not be able to do, and can."""
    found = []
    for statement in some:
        try:
            assert_may(connection, [statement])
        except errors.InsufficientPrivilege:
            continue
        found.append(statement)
    return found


def test_each_role_can_do_its_work(database: Database) -> None:
    for role, statement in WORKS:
        with database.connect(role) as connection, connection.transaction(force_rollback=True):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("role", "file"),
    [
        ("opensend_milter", "intake"),
        ("opensend_http", "intake"),
        ("opensend_http", "submissions"),
        ("opensend_http", "letters"),
        ("opensend_worker", "jobs"),
        ("opensend_console", "console"),
        ("opensend_console", "search"),
        ("opensend_console", "story"),
        ("opensend_console", "overview"),
    ],
)
def test_each_role_may_run_the_statements_of_its_file(database: Database, role: Role, file: StatementFile) -> None:
    """EXPLAIN checks the rights and does nothing."""
    with database.connect(role) as connection:
        for name, statement in statements(file).items():
            without_ages = statement.replace("%(age)s", "NULL::interval")
            plan = connection.execute("EXPLAIN " + re.sub(r"%\(\w+\)[sbt]", "NULL", without_ages).replace("%%", "%"))
            assert plan.fetchall(), name


def test_no_role_can_do_more(database: Database) -> None:
    """All at once, so that one run shows every hole."""
    holes = []
    for role in LOGIN_ROLES:
        with database.connect(role) as connection:
            connection.execute("SET default_transaction_read_only = off")  # rights must hold without it
            holes += [(role, one) for one in holes_of(connection, [one for who, one in NEVER if who == role])]
    assert holes == []


def test_key_id_knows_keys_with_a_user_only(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("INSERT INTO public.api_keys (name, token_hash, user_id) VALUES ('a', 'known', 'u')")
        connection.execute("INSERT INTO public.api_keys (name, token_hash, user_id) VALUES ('b', 'nobody', NULL)")
        row = connection.execute("SELECT id::text FROM public.api_keys WHERE name = 'a'").fetchone()
    with database.connect("opensend_dovecot_auth") as connection:
        found = connection.execute(
            "SELECT opensend_milter.key_id(h) FROM unnest(ARRAY['known', 'nobody', 'none', NULL]) h"
        ).fetchall()
    assert found == [row, (None,), (None,), (None,)]


def test_key_id_does_not_look_where_its_caller_points(database: Database) -> None:
    """The function runs as its owner: what the caller's path offers must not stand in for what it needs."""
    with database.connect() as connection:
        connection.execute("INSERT INTO public.api_keys (name, token_hash, user_id) VALUES ('a', 'known', 'u')")
        connection.execute(
            "CREATE SCHEMA forged; GRANT USAGE ON SCHEMA forged TO PUBLIC;"
            " CREATE FUNCTION forged.same(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';"
            " CREATE OPERATOR forged.= (FUNCTION = forged.same, LEFTARG = text, RIGHTARG = text)"
        )
        # As everybody may beside OpenSend.
        connection.execute(
            sql.SQL("GRANT TEMPORARY ON DATABASE {} TO opensend_dovecot_auth").format(sql.Identifier(database.name))
        )
    with database.connect("opensend_dovecot_auth") as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("CREATE TEMP TABLE api_keys (id text, token_hash text, user_id text)")
        connection.execute("INSERT INTO api_keys VALUES ('forged', 'x', 'u')")
        connection.execute("SET search_path = pg_temp, forged, pg_catalog, public")
        assert connection.execute(KEY_ID).fetchone() == (None,)


def test_a_made_up_hash_opens_nothing(database: Database) -> None:
    """Nor does what the HTTP process may look up, ids and names; nor a key whose time is over, or that only sends."""
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO public.api_keys (name, token_hash, user_id) VALUES ('a', 'known', 'u'), ('b', 'over', 'u')"
        )
        connection.execute(
            "INSERT INTO public.api_keys (name, token_hash, user_id, permission)"
            " VALUES ('c', 'may send', 'u', 'sending_access')"
        )
        connection.execute(
            "INSERT INTO opensend_milter.key_settings (key_id, expires_at)"
            " SELECT id, now() FROM public.api_keys WHERE name = 'b'"
        )
        ((email_id,),) = connection.execute(
            """INSERT INTO public.emails (id, "from", "to", subject, status, user_id)
            VALUES (gen_random_uuid(), 'a@b.example', '[]', '', 'scheduled', 'u') RETURNING id"""
        )
    asked = [
        "SELECT email_id FROM opensend_milter.letters(%(hash)s, ARRAY[%(id)s]::uuid[], true)",
        "SELECT s FROM opensend_milter.cancel(%(hash)s, %(id)s) s WHERE s IS NOT NULL",
        "SELECT s FROM opensend_milter.reschedule(%(hash)s, %(id)s, now()) s WHERE s IS NOT NULL",
    ]
    with database.connect("opensend_http") as connection:
        ids = [str(row[0]) for row in connection.execute("SELECT id FROM public.api_keys")]
        for made_up in ("", "x", "%", "a", "u", "over", "may send", *ids):
            for statement in asked:
                assert connection.execute(statement, {"hash": made_up, "id": email_id}).fetchall() == [], made_up
        found = [connection.execute(statement, {"hash": "known", "id": email_id}).fetchall() for statement in asked]
    assert found == [[(email_id,)], [("canceled",)], [("canceled",)]]


def test_dovecot_is_cut_off_before_postfix_gives_up(database: Database) -> None:
    with database.connect("opensend_dovecot_auth") as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("3s",)
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


@pytest.mark.parametrize("role", LOGIN_ROLES)
def test_a_host_that_is_gone_holds_no_lock_for_hours(database: Database, role: Role) -> None:
    """Postgres asks over TCP whether it is still there, and ends what it left in the middle."""
    with psycopg.connect(database.url_for(role)) as connection:
        names = "tcp_keepalives_idle tcp_keepalives_interval tcp_keepalives_count tcp_user_timeout"
        asked = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in names.split()]
        assert asked == [("5",), ("5",), ("3",), ("20000",)]
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("1min",)


def test_beside_opensend_nothing_is_taken_from_everybody(beside: Database) -> None:
    """Others work there, and we cannot know who needs it."""
    migrations.migrate(beside.url, beside.password_dir)
    with beside.connect("opensend_http") as connection, connection.transaction(force_rollback=True):
        for statement in FILLING:
            connection.execute(statement)


def test_rights_of_an_earlier_version_are_taken_back(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("GRANT ALL ON opensend_milter.raw_chunks TO opensend_milter")
        connection.execute("GRANT CREATE ON SCHEMA opensend_milter TO opensend_worker")
        connection.execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO PUBLIC").format(sql.Identifier(database.name)))
        connection.execute("GRANT EXECUTE ON FUNCTION lo_creat(integer) TO PUBLIC")
    migrations.init(database.url, database.password_dir)
    with database.connect("opensend_milter") as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute("SELECT bytes FROM opensend_milter.raw_chunks")
    with database.connect("opensend_worker") as connection:
        for statement in ("CREATE TABLE opensend_milter.mine (id int)", *FILLING):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


def test_who_reads_and_changes_emails_for_others_can_do_no_more(database: Database) -> None:
    """The owner of these functions: nobody logs in as it, and what it may is what they need."""
    with database.connect() as connection:
        may = {
            (table, privilege, column)
            for table, privilege, column in connection.execute(
                "SELECT table_name, privilege_type, column_name FROM information_schema.column_privileges"
                " WHERE grantee = 'opensend_key_reader' AND privilege_type <> 'SELECT'"
            )
        }
        whole = connection.execute(
            "SELECT table_name, privilege_type FROM information_schema.table_privileges"
            " WHERE grantee = 'opensend_key_reader' ORDER BY 1, 2"
        ).fetchall()
    assert may == {
        ("emails", "UPDATE", "status"), ("emails", "UPDATE", "scheduled_at"), ("submissions", "UPDATE", "changed_at"),
        ("jobs", "UPDATE", "not_before"), ("jobs", "UPDATE", "announce_at"),
        *(("jobs", "INSERT", column) for column in ("email_id", "user_id", "not_before", "announce_at")),
        *(("row_digests", "INSERT", column) for column in ("email_id", "digest", "computed_at")),
    }  # fmt: skip
    assert whole == [("jobs", "DELETE"), ("row_digests", "INSERT"), ("row_digests", "SELECT")]
