"""Hot statements stay fast beside many rows: as Postgres counts it, they read no large table from end to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import pytest

from opensend_milter.adapters.admin import naming
from opensend_milter.adapters.postgres.intake_rows import array
from opensend_milter.adapters.postgres.link import Connection, connect, statements
from tests.integration.emptied_database import Databases
from tests.integration.private_postgres import Cluster, Database

ROWS = 20_000
USER = "many"
HOT_JOBS: Mapping[str, Mapping[str, Any]] = {
    "due_announcements": {"limit": 10, "hand_over": False},
    "end_moved_on": {"limit": 10},
    "due_lanes": {},
    "take": {"lease": timedelta(minutes=1), "worker": "w"},
    "take_due": {"lease": timedelta(minutes=1), "worker": "w", "user_id": USER, "courier": ""},
    "submission": {},
    "route": {"user_id": USER, "names": ["d9.example", "d9.example"]},
    "raw": {},
}
FILL = f"""
    INSERT INTO api_keys (id, user_id, name, token_hash, token_preview, permission)
        SELECT gen_random_uuid(), '{USER}', i, i, '', 'sending_access' FROM generate_series(1, {ROWS}) i;
    INSERT INTO opensend_milter.key_settings (key_id) SELECT id FROM api_keys;
    INSERT INTO domains (id, user_id, name, status)
        SELECT gen_random_uuid(), '{USER}', 'd' || i || '.example', 'verified' FROM generate_series(1, {ROWS}) i;
    INSERT INTO opensend_milter.domain_settings (domain_id) SELECT id FROM domains;
    INSERT INTO email_suppressions (id, user_id, email, reason)
        SELECT gen_random_uuid(), '{USER}', 'u' || i || '@example.net', 'bounce' FROM generate_series(1, {ROWS}) i;
    INSERT INTO opensend_milter.odd_spellings (user_id, email, folded)
        SELECT '{USER}', 'O' || i || '@example.net', 'o' || i || '@example.net' FROM generate_series(1, {ROWS}) i;
    INSERT INTO emails (id, user_id, "from", "to", subject, status, idempotency_key)
        SELECT gen_random_uuid(), '{USER}', 'a@d1.example', '["b@example.net"]', '', 'sent', 'k' || i
        FROM generate_series(1, {ROWS}) i;
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
            client_address, tls, sender, from_address, recipients, size_bytes, sha256)
        SELECT e.id, now(), '{USER}', (SELECT id FROM api_keys LIMIT 1), 'smtp', '', '', '', 'a@d1.example',
            'a@d1.example', ARRAY['b@example.net'], 1, sha256('') FROM emails e;
    INSERT INTO opensend_milter.fingerprints (key_id, fingerprint, email_id, received_at)
        SELECT (SELECT id FROM api_keys LIMIT 1), sha256(id::text::bytea), id, now() FROM emails;
"""  # noqa: S608  # our own constants


@pytest.fixture(scope="module")
def _full(_shared_cluster: Cluster, _databases: Databases, _template: Path) -> Iterator[str]:
    """Fill one database for all: it takes ten times as long as to copy it."""
    name = "full"
    _shared_cluster.new_database(name, template=_databases.template)
    with Database(name, _shared_cluster, _template).connect() as connection:
        connection.execute(FILL)
        connection.execute("ANALYZE")
    yield name
    _shared_cluster.drop_database(name)


@pytest.fixture
def filled(cluster: Cluster, _full: str, _template: Path) -> Iterator[Connection]:
    copy = Database("copy_of_full", cluster, _template)
    cluster.new_database(copy.name, template=_full)
    with copy.connect() as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        yield connection
    cluster.drop_database(copy.name)


def read_in_sequence(connection: Connection) -> int:
    """Return how many rows were read so, of all tables, since they were filled."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    ((read,),) = connection.execute(
        "SELECT sum(seq_tup_read)::bigint FROM pg_stat_user_tables WHERE schemaname IN ('public', 'opensend_milter')"
    )
    return int(read)


def questions(connection: Connection, count: int) -> Mapping[str, Any]:
    keys = [row[0] for row in connection.execute("SELECT id FROM api_keys ORDER BY id LIMIT %s", (count,))]
    names = [f"d{number}.example" for number in range(1, count + 1)]
    spelled = [f"u{number}@example.net" for number in range(1, count + 1)]
    return {
        "key_ids": array(keys),
        "ascii_domains": array(names),
        "unicode_domains": array(names),
        "idempotency_keys": array([f"k{number}" if number % 2 else None for number in range(count)]),
        "fingerprints": [uuid4().bytes * 2 for _ in range(count)],
        "window": timedelta(hours=1),
        "spellings": array(spelled),
    }


@pytest.mark.parametrize("count", [1, 20, 100])
def test_the_facts_of_a_batch_are_found_by_index(filled: Connection, count: int) -> None:
    asked, before = questions(filled, count), read_in_sequence(filled)
    rows = filled.execute(statements("intake")["facts_for"], asked, prepare=True).fetchall()
    assert read_in_sequence(filled) == before
    assert [row[4] for row in rows] == [True] * count
    assert [row[5][0][1] for row in rows] == ["bounce"] * count


def test_a_plan_made_while_nothing_was_stored_finds_what_came_since_by_index(database: Database) -> None:
    """Postgres keeps a plan until it counts the rows anew: a minute in which a gateway may take 50,000 messages."""
    key_id = str(uuid4())
    milter = database.url_for("opensend_milter")
    with database.connect() as beside, connect(milter, application_name="test") as connection:
        beside.execute("TRUNCATE opensend_milter.fingerprints")
        facts = statements("intake")["facts_for"]
        asked = {
            **questions(beside, 0),
            **{name: array([None]) for name in ("ascii_domains", "unicode_domains", "idempotency_keys")},
            "spellings": array(["a@b.example"]),
            "key_ids": array([key_id]),
            "fingerprints": [uuid4().bytes * 2],
        }
        connection.execute(facts, asked, prepare=True)
        beside.execute(
            "INSERT INTO opensend_milter.fingerprints (key_id, fingerprint, email_id, received_at)"
            " SELECT %s::uuid, sha256(i::text::bytea), gen_random_uuid(), now() FROM generate_series(1, %s) i",
            (key_id, ROWS),
        )
        before = rows_read(connection)
        connection.execute(facts, asked, prepare=True)
        assert rows_read(connection) - before < ROWS


def test_a_key_restricted_to_a_domain_costs_no_more(filled: Connection) -> None:
    filled.execute("UPDATE api_keys SET domain = (SELECT id::text FROM domains WHERE name = 'd7.example')")
    filled.execute("ANALYZE api_keys")
    asked, before = questions(filled, 20), read_in_sequence(filled)
    rows = filled.execute(statements("intake")["facts_for"], asked, prepare=True).fetchall()
    assert read_in_sequence(filled) == before
    assert {row[3] for row in rows} == {"d7.example"}


def test_an_address_that_is_listed_oddly_costs_no_more(filled: Connection) -> None:
    filled.execute(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " SELECT gen_random_uuid(), user_id, email, 'odd' FROM opensend_milter.odd_spellings"
    )
    filled.execute("ANALYZE email_suppressions")
    asked = questions(filled, 20)
    asked = {**asked, "spellings": array([f"o{number}@example.net" for number in range(1, 21)])}
    before = read_in_sequence(filled)
    rows = filled.execute(statements("intake")["facts_for"], asked, prepare=True).fetchall()
    assert read_in_sequence(filled) == before
    assert [row[5][0][1] for row in rows] == ["odd"] * 20


def test_a_domain_stored_in_capitals_is_found_all_the_same(filled: Connection) -> None:
    filled.execute("UPDATE domains SET name = 'D1.Example' WHERE name = 'd1.example'")
    (row,) = filled.execute(statements("intake")["facts_for"], questions(filled, 1)).fetchall()
    assert row[4] is True


def test_a_login_is_found_by_index(filled: Connection) -> None:
    before = read_in_sequence(filled)
    filled.execute("SELECT opensend_milter.key_id('os_' || repeat('x', 40))")
    assert read_in_sequence(filled) == before


def test_a_refusal_is_found_by_index(filled: Connection) -> None:
    filled.execute(f"""
        INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address, key_id,
                sender, recipients, size_bytes, ref, token_hash)
            SELECT 'r', 550, '5.7.1', '', 'smtp', i, '', '', '', '{{}}', 1, 'R' || i, 'h'
            FROM generate_series(1, {ROWS}) i;
        ANALYZE opensend_milter.refusals""")  # noqa: S608  # our own constant
    before = read_in_sequence(filled)
    asked = {"ref": "R7", "token_hash": b"h", "age": timedelta(days=30)}
    assert len(filled.execute(statements("submissions")["refused"], asked, prepare=True).fetchall()) == 1
    assert read_in_sequence(filled) == before


def test_a_claim_and_a_look_for_work_are_found_by_index(filled: Connection) -> None:
    filled.execute(
        "INSERT INTO opensend_milter.jobs (email_id, user_id, not_before, announce_at, courier)"
        " SELECT id, user_id, now() + interval '1 day', now() + interval '1 day', '' FROM emails"
    )
    filled.execute("ANALYZE opensend_milter.jobs")
    ((email_id,),) = filled.execute("SELECT email_id FROM opensend_milter.jobs LIMIT 1")
    before = read_in_sequence(filled)
    for name, values in HOT_JOBS.items():
        filled.execute(statements("jobs")[name], {"id": email_id, **values}, prepare=True)
        assert read_in_sequence(filled) == before, name


def test_an_attachment_is_compressed_the_fast_way(database: Database) -> None:
    with connect(database.url_for("opensend_milter"), application_name="test") as connection:
        ((known,),) = connection.execute("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
        ((used,),) = connection.execute("SHOW default_toast_compression")
        ((planned,),) = connection.execute("SHOW plan_cache_mode")
        ((compiled,),) = connection.execute("SHOW jit")
        ((processes,),) = connection.execute("SHOW max_parallel_workers_per_gather")
    assert used == ("lz4" if "lz4" in known else "pglz")
    assert (planned, compiled, processes) == ("force_generic_plan", "off", "0")


def rows_read(connection: Connection) -> int:
    """Return how many rows were read, of all tables, in whatever way."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    ((read,),) = connection.execute(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables"
        " WHERE schemaname IN ('public', 'opensend_milter')"
    )
    return int(read)


def test_a_page_costs_what_is_on_it(filled: Connection) -> None:
    """However many messages and refusals a key has, and however far the page is from the newest."""
    filled.execute(
        "UPDATE opensend_milter.submissions s SET received_at = now() - n.place * interval '1 second'"
        " FROM (SELECT email_id, row_number() OVER (ORDER BY email_id) AS place FROM opensend_milter.submissions) n"
        " WHERE n.email_id = s.email_id"
    )
    filled.execute(
        "UPDATE emails e SET created_at = s.received_at FROM opensend_milter.submissions s WHERE s.email_id = e.id"
    )
    filled.execute(
        "INSERT INTO opensend_milter.refusals (refused_at, rule, code, enhanced, text, front_door, queue_id,"
        " client_address, key_id, sender, recipients, size_bytes) SELECT received_at, 'r', 550, '5.7.1', '', 'smtp',"
        " email_id::text, '::1', key_id::text, '', '{}', 1 FROM opensend_milter.submissions"
    )
    filled.execute("VACUUM ANALYZE emails, opensend_milter.submissions, opensend_milter.refusals")
    ((key_id, email_id, at),) = filled.execute(
        "SELECT key_id, email_id, received_at FROM opensend_milter.submissions"
        " ORDER BY received_at OFFSET 10000 LIMIT 1"
    )
    letters, submissions = statements("letters"), statements("submissions")
    where = {"key_id": key_id, "id": email_id, "email_id": email_id, "at": at, "limit": 21}
    listed = {"statuses": None, "tried": None, "rejected": True, "since": "-infinity", "bulk_id": None, "refusal_id": 0}
    named = {"request_id": "req_x", "refusal_id": None}
    asked = [
        *((name, letters[name], where) for name in letters if name.startswith(("place", "older", "newer"))),
        ("place", submissions["place"], where | named),
        ("page", submissions["page"], where | listed),
    ]
    for name, statement, values in asked:
        before = rows_read(filled)
        found = filled.execute(statement, values, prepare=True).fetchall()
        assert len(found) == (1 if name.startswith("place") else 21)
        assert rows_read(filled) - before < 300, name


def test_a_page_of_refusals_costs_what_is_on_it(filled: Connection) -> None:
    """Of all, and however far it is from the newest."""
    filled.execute(
        "INSERT INTO opensend_milter.refusals (refused_at, rule, code, enhanced, text, front_door, queue_id,"
        " client_address, key_id, sender, recipients, size_bytes) SELECT now() - i * interval '1 second', 'r', 550,"
        " '5.7.1', '', 'smtp', '', '::1', '', '', '{}', 1 FROM generate_series(1, %s) i",
        [ROWS],
    )
    filled.execute("VACUUM ANALYZE opensend_milter.refusals")
    ((number, at),) = filled.execute(
        "SELECT id, refused_at FROM opensend_milter.refusals ORDER BY refused_at OFFSET 1000 LIMIT 1"
    )
    for place in ({"before": None, "before_no": None}, {"before": at, "before_no": number}):
        before = rows_read(filled)
        values = {**place, "since": None, "limit": 21}
        found = filled.execute(statements("search")["newest_refusals"], values, prepare=True).fetchall()
        assert len(found) == 21
        assert rows_read(filled) - before < 300, place


def test_an_email_is_named_by_index(filled: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its last characters among the newest only: that costs the same however many there are."""
    monkeypatch.setattr(naming, "NEWEST", 100)
    oldest, newest = (str(row[0]) for row in filled.execute("SELECT id FROM emails LIMIT 2"))
    filled.execute("UPDATE emails SET created_at = now() + interval '1 hour' WHERE id = %s", [newest])
    filled.execute("UPDATE emails SET created_at = now() - interval '1 hour' WHERE id = %s", [oldest])
    before = read_in_sequence(filled)
    for named in (newest[:13], newest, newest[-12:]):
        assert naming.emails_named(filled, [named]) == {named: [newest]}
    assert naming.emails_named(filled, [oldest[-12:], "4jd5rb6fZCzRW0C"]) == {oldest[-12:]: [], "4jd5rb6fZCzRW0C": []}
    assert read_in_sequence(filled) == before


def test_a_search_and_what_fills_its_table_cost_what_they_find(filled: Connection) -> None:
    """However many messages have a word, and however many are noted already."""
    filled.execute(
        "UPDATE emails e SET created_at = now() - n.place * interval '1 second'"
        " FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM emails) n WHERE n.id = e.id"
    )
    filled.execute(
        "INSERT INTO opensend_milter.search_stretches"
        " SELECT i + 1, now() - %s * interval '1 second' + i * interval '100 seconds' FROM generate_series(1, %s) i",
        [ROWS, ROWS // 100 - 1],
    )
    filled.execute(
        "INSERT INTO opensend_milter.search SELECT id, created_at, ARRAY[g.number << 44 | 7, g.number << 44 | place]"
        " FROM (SELECT id, created_at, 100 + row_number() OVER (ORDER BY created_at) AS place FROM emails) e"
        " CROSS JOIN LATERAL (SELECT max(number) AS number FROM opensend_milter.search_stretches"
        " WHERE began_at <= e.created_at) g"
    )
    filled.execute("VACUUM ANALYZE emails, opensend_milter.submissions, opensend_milter.search")
    search, filling = statements("search"), statements("filling")
    place = {"noted_at": None, "noted_id": None, "before": None, "before_id": None, "since": None, "limit": 21}
    page = {"at": "epoch", "id": str(uuid4()), "age": timedelta(0), "until": "infinity", "limit": 21}
    looks: list[tuple[LiteralString, Mapping[str, Any], int]] = [
        (search["noted"], {**place, "terms": [7]}, 21),
        (search["noted"], {**place, "terms": [7, 150]}, 1),
        (search["newest"], place, 21),
        (search["newest_of_user"], {**place, "of_user": USER}, 21),
        (filling["next_page"], page, 21),
        (filling["forget"], page, 1),
        (filling["lag"], {}, 1),
    ]
    for statement, values, count in looks:
        before = rows_read(filled)
        assert len(filled.execute(statement, values, prepare=True).fetchall()) == count, statement
        # A look at each of 200 stretches may be among them.
        assert rows_read(filled) - before < 700, statement


def test_what_goes_out_is_counted_among_the_newest(filled: Connection) -> None:
    """However many there are, and however many of them were sent within the hour."""
    filled.execute(
        "UPDATE emails e SET created_at = now() - n.place * interval '1 second', sent_at = now()"
        " FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM emails) n WHERE n.id = e.id"
    )
    filled.execute("VACUUM ANALYZE emails")
    before = rows_read(filled)
    (found,) = filled.execute(statements("overview")["handed_over"], {"most": 500}, prepare=True).fetchall()
    assert found[:2] == (500, 500)
    assert found[2] < found[3]
    assert rows_read(filled) - before < 700
