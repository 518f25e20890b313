"""A database that is used again is as good as new; one that is not is never used again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.integration.emptied_database import Databases
from tests.integration.private_postgres import Cluster, Database

OID = "SELECT oid FROM pg_database WHERE datname = current_database()"


@pytest.fixture
def databases(cluster: Cluster, database: Database) -> Iterator[Databases]:
    """Such databases of our own."""
    with closing(Databases(cluster, "template_opensend", prefix="again")) as made:
        yield made
    with database.connect() as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'again%'").fetchall():
            cluster.drop_database(name)


def _use(cluster: Cluster, databases: Databases, *statements: str) -> tuple[object, ...]:
    name, _ = databases.take()
    with psycopg.connect(cluster.url(name), autocommit=True) as connection:
        oid = connection.execute(OID).fetchone()
        for statement in statements:
            connection.execute(statement.replace("DATABASE_NAME", name).encode())
    databases.give_back(name)
    assert oid is not None
    return oid


def test_rows_are_gone_and_numbers_begin_again(cluster: Cluster, databases: Databases) -> None:
    first = _use(
        cluster,
        databases,
        "INSERT INTO public.domains (name, status, user_id) VALUES ('example.org', 'verified', 'u')",
        "INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)"
        " VALUES ('x', 'x', gen_random_uuid(), '{}')",
    )
    name, _ = databases.take()
    with psycopg.connect(cluster.url(name), autocommit=True) as connection:
        assert connection.execute(OID).fetchone() == first
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname IN ('public', 'opensend_milter')"
        ).fetchall()
        held = {table for (table,) in tables if connection.execute(f"SELECT FROM {table} LIMIT 1".encode()).rowcount}
        of_the_template = ("migrations", "rights", "search_progress", "search_stretches", "secrets")
        assert held == {f"opensend_milter.{name}" for name in of_the_template}
        assert connection.execute("SELECT FROM pg_sequences WHERE last_value IS NOT NULL").rowcount == 0
    databases.give_back(name)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra ()",
        "ALTER TABLE public.emails ADD extra text",
        "ALTER TABLE public.emails ALTER subject DROP NOT NULL, ALTER subject SET DEFAULT 'x'",
        "DROP INDEX opensend_milter.jobs_due_idx",
        "CREATE FUNCTION extra() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER extra BEFORE INSERT ON public.emails FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger()",
        "GRANT DELETE ON public.emails TO opensend_http",
        "ALTER DATABASE DATABASE_NAME SET statement_timeout = '1s'",
        "ALTER DATABASE DATABASE_NAME CONNECTION LIMIT 1",
        "REVOKE CONNECT ON DATABASE DATABASE_NAME FROM PUBLIC",
        "UPDATE opensend_milter.migrations SET applied_at = now()",
    ],
)
def test_an_altered_one_is_not_used_again(cluster: Cluster, databases: Databases, statement: str) -> None:
    assert _use(cluster, databases, statement) != _use(cluster, databases)


def test_one_that_somebody_has_not_left_is_not_used_again(cluster: Cluster, databases: Databases) -> None:
    name, _ = databases.take()
    with psycopg.connect(cluster.url(name), autocommit=True) as connection:
        databases.give_back(name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT")
    assert databases.take()[0] != name
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(cluster.url(name))


def test_the_way_in_heeds_triggers_and_foreign_keys_again(cluster: Cluster, databases: Databases) -> None:
    _use(cluster, databases)
    name, way_in = databases.take()
    assert way_in.connection().execute("SHOW session_replication_role").fetchone() == ("origin",)
    databases.give_back(name)


def test_a_server_that_was_restarted_is_no_hindrance(cluster: Cluster, databases: Databases) -> None:
    first = _use(cluster, databases)
    cluster.stop()
    cluster.start()
    assert _use(cluster, databases) == first == _use(cluster, databases)
