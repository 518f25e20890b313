"""Our copy of OpenSend's tables is as OpenSend's own migrations leave them: by the catalog, not by the text."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from opensend_milter.adapters.schema import facts
from opensend_milter.adapters.schema.facts import Column, ForeignKey, Index, Tables
from tests.integration.private_postgres import Cluster, Database

NOT_MADE = "nothing of ours needs it where there is no OpenSend"
OF_THE_WORKER = "in the standalone profile it is our worker that looks for what is due, by an index of its own"
DIFFERENCES = {
    **dict.fromkeys(
        (
            ("only there", name)
            for name in ("plans", "scheduler_heartbeats", "subscriptions", "templates", "topics", "usage_periods")
        ),
        NOT_MADE,
    ),
    ("only here", "domains_user_id_name_idx"): "each message asks for (user, name), and OpenSend has no index for it",
    ("only here", "api_keys_user_id_idx"): "`key list --user` and `domain list` ask for the keys of a user",
    ("only here", "webhook_deliveries_due_idx"): OF_THE_WORKER,
    ("only there", "webhook_deliveries_status_idx"): OF_THE_WORKER,
    ("only there", "webhook_deliveries_webhook_id_idx"): OF_THE_WORKER,
}
"""What is not as it is there, and why; of a table that is missing, its name alone."""


def _parts(tables: Tables) -> set[Column | Index | ForeignKey]:
    return {*tables.columns, *tables.indexes, *tables.foreign_keys}


def _named(part: Column | Index | ForeignKey, missing: frozenset[str]) -> str:
    if part.table in missing:
        return part.table
    return f"{part.table}.{part.name}" if isinstance(part, Column) else part.name


def differences(here: Tables, there: Tables) -> set[tuple[str, str]]:
    """Name what is not the same; what is there in both and differs, is only here and only there."""
    missing = there.names - here.names
    return {
        *(("only here", _named(part, missing)) for part in _parts(here) - _parts(there)),
        *(("only there", _named(part, missing)) for part in _parts(there) - _parts(here)),
    }


def made_by_init(database: Database) -> Tables:
    with database.connect() as connection:
        return facts.tables_in(connection, facts.opensend().names)


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    """An empty database; its URL."""
    yield cluster.new_database("empty_for_facts")
    cluster.drop_database("empty_for_facts")


def test_what_init_makes_is_what_opensend_has(database: Database) -> None:
    """Whatever differs is in the table above, and whatever is in that table differs."""
    assert differences(made_by_init(database), facts.opensend()) == DIFFERENCES.keys()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("ALTER TABLE logs ALTER request_body TYPE text", {"only here", "only there"}),
        ("ALTER TABLE emails ALTER subject DROP NOT NULL", {"only here", "only there"}),
        ("ALTER TABLE emails ALTER status SET DEFAULT 'new'", {"only here", "only there"}),
        ("ALTER TABLE emails ALTER idempotency_key TYPE varchar(64)", {"only here", "only there"}),
        ("ALTER TABLE emails ADD extra text", {"only here"}),
        ("ALTER TABLE emails DROP reply_token", {"only there"}),
        ("DROP INDEX emails_tags_gin_idx", {"only there"}),
        ("ALTER INDEX emails_tags_gin_idx RENAME TO other", {"only here", "only there"}),
        ("ALTER TABLE email_events DROP CONSTRAINT email_events_email_id_emails_id_fk", {"only there"}),
        ("ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_pkey", {"only there"}),
        ("DROP TABLE logs", {"only there"}),
        ("DROP INDEX api_keys_user_id_idx", set()),
        ("CREATE INDEX webhook_deliveries_status_idx ON webhook_deliveries (status)", set()),
    ],
)
def test_a_difference_that_nobody_gave_a_reason_for_is_seen(
    database: Database, statement: str, found: set[str]
) -> None:
    """The last two: a reason for what does not differ any more is seen as well."""
    with database.connect() as connection:
        connection.execute(statement.encode())
    now = differences(made_by_init(database), facts.opensend())
    assert {where for where, _ in now - DIFFERENCES.keys()} == found
    assert now != DIFFERENCES.keys()


def test_the_facts_make_what_they_say(empty: str) -> None:
    """Nothing is lost on the way to a database and back."""
    with psycopg.connect(empty, autocommit=True) as connection:
        facts.make(connection)
        assert facts.tables_in(connection, facts.opensend().names) == facts.opensend()
        made = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()
    there = facts.opensend()
    assert {name for (name,) in made} == there.names | {index.name for index in there.indexes}


def test_what_runs_beside_opensend_runs_on_the_facts(beside: Database) -> None:
    """Our own schema is another one: `db migrate` alters nothing."""
    with beside.connect() as connection:
        assert facts.tables_in(connection, facts.opensend().names) == facts.opensend()
        assert connection.execute("SELECT FROM opensend_milter.migrations WHERE name LIKE 'opensend/%'").rowcount == 0
