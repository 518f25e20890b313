"""What is looked at for one answer is bounded, and said; what lies beyond is found by its ids."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup import search
from opensend_milter.adapters.postgres.lookup.search import find
from opensend_milter.core.lookup import Filters, Hits, Place, Scope
from opensend_milter.core.model import UserId
from tests.integration.private_postgres import Database

BEGAN = datetime(2026, 11, 30, 12, tzinfo=UTC)
COUNT = 30
REACH = 20 * 5
"""A message, three spellings of its sender, and a recipient."""


@pytest.fixture
def connection(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A minute apart, every third another user's; looked at in pages of four."""
    monkeypatch.setattr(search, "PAGE", 4)
    monkeypatch.setattr(search, "MORE", 4)
    with database.connect() as opened:
        opened.execute(
            """INSERT INTO emails (id, "from", "to", subject, status, user_id, created_at)
            SELECT ('01a22a0c-0000-4d1e-9651-' || lpad(i::text, 12, '0'))::uuid, 'app@example.org',
                jsonb_build_array('to' || i || '@example.net'), 'number ' || i, 'sent',
                CASE i %% 3 WHEN 0 THEN 'bank' ELSE 'shop' END, %s::timestamptz + i * interval '1 minute'
            FROM generate_series(1, %s) i""",
            [BEGAN, COUNT],
        )
        opened.execute(
            """INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,
                key_id, user_id, sender, recipients, size_bytes, refused_at, ref)
            SELECT 'too-large', 552, '5.3.4', '', 'smtp', 'q' || i, '', '', 'shop', 'app@example.org',
                ARRAY['to' || i || '@example.net'], 1, %s::timestamptz + i * interval '1 minute', 'REF000000' || i
            FROM generate_series(1, 3) i""",
            [BEGAN],
        )
    with database.connect("opensend_reader") as reader:
        yield reader


def numbers(found: Hits) -> list[int]:
    return [int(one.id[-12:]) for one in found.rows if one.kind == "message"]


def test_the_newest_come_first_and_the_next_page_goes_on_behind_them(connection: Connection) -> None:
    seen: list[str] = []
    place = None
    while True:
        page = find(connection, None, limit=7, before=place)
        seen += [f"{one.kind} {one.id}" for one in page.rows]
        if not page.more:
            break
        place = page.rows[-1].place
    assert len(seen) == len(set(seen)) == COUNT + 3
    assert numbers(find(connection, None, limit=5)) == [30, 29, 28, 27, 26]


def test_what_is_too_far_back_is_said_and_found_by_its_id(connection: Connection) -> None:
    assert numbers(find(connection, "to11@example.net", reach=REACH)) == [11]
    beyond = find(connection, "to10@example.net", reach=REACH)
    assert beyond.rows == []
    assert beyond.searched_back_to == BEGAN + timedelta(minutes=11)
    assert numbers(find(connection, "01a22a0c-0000-4d1e-9651-000000000010")) == [10]
    ahead = find(
        connection,
        "to10@example.net",
        before=Place(BEGAN + timedelta(minutes=15), "0" * 8 + "-0000" * 3 + "-" + "0" * 12),
    )
    assert numbers(ahead) == [10]


def test_no_refusal_is_looked_at_for_a_mere_word(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no subject, and a Message-ID has a domain."""
    monkeypatch.setattr(search, "PAGE", 1)
    refused = Filters(status="refused")
    assert find(connection, "number", refused, reach=1).searched_back_to is None
    assert find(connection, "m1@example.org", refused, reach=1).searched_back_to == BEGAN + timedelta(minutes=3)


@pytest.mark.usefixtures("connection")
def test_refusals_of_a_user_are_found_however_many_others_have(database: Database) -> None:
    with database.connect() as owner:
        owner.execute(
            """INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,
                key_id, user_id, sender, recipients, size_bytes, refused_at)
            SELECT 'too-large', 552, '5.3.4', '', 'smtp', '', '', '', 'bank', 'app@example.org', '{}', 1, now()
            FROM generate_series(1, 20000)"""
        )
        owner.execute("ANALYZE opensend_milter.refusals")
        values = {"of_user": "shop", "before": None, "before_no": 2**63 - 1, "since": None, "limit": 51}
        query = b"EXPLAIN (ANALYZE, FORMAT TEXT) " + search.SQL["newest_refusals_of_user"].rstrip(";").encode()
        plan = "\n".join(line for (line,) in owner.execute(query, values))
    assert "refusals_user_id_idx" in plan
    assert "Rows Removed by Filter" not in plan


def test_others_do_not_count_for_a_user(connection: Connection) -> None:
    shop = Scope(user_id=UserId("shop"))
    assert numbers(find(connection, "to2@example.net", scope=shop)) == [2]
    assert numbers(find(connection, "to3@example.net", scope=shop)) == []
    assert numbers(find(connection, None, Filters(since=BEGAN + timedelta(minutes=28)), shop)) == [29, 28]


@pytest.mark.parametrize(
    "asked", ["REF0000002", "ref0000002", "q2", "to2@example.net", "https://mail.example/r/REF0000002"]
)
def test_a_refusal_is_found_by_what_its_sender_knows(connection: Connection, asked: str) -> None:
    found = find(connection, asked, scope=Scope(user_id=UserId("shop")))
    assert [one.ref for one in found.rows if one.kind == "refusal"] == ["REF0000002"]


@pytest.mark.parametrize(
    "asked", ["\x00", "\ud800", "%", "'; DROP TABLE emails; --", "x" * 100_000, "\u202e", "\\", "a@" * 9_000]
)
def test_hostile_words_find_nothing_and_break_nothing(connection: Connection, asked: str) -> None:
    assert find(connection, asked).rows == []


def test_a_message_to_many_counts_as_many(connection: Connection, database: Database) -> None:
    """Each address costs as much as a message: who sends to a thousand at once makes nobody wait the longer."""
    with database.connect() as writer:
        writer.execute(
            """UPDATE emails SET "to" = (SELECT jsonb_agg('r' || i || '@example.net') FROM generate_series(1, 1000) i)
            WHERE subject = 'number 30'"""
        )
    found = find(connection, "to11@example.net", reach=REACH)
    assert found.rows == []
    assert found.searched_back_to == BEGAN + timedelta(minutes=27), "one page"


@pytest.mark.parametrize("asked", ["01a22a0c-0000-4d1e-9651-000000000099", "req_01M8NG79DS8JPBRNDE5T2AR77D"])
def test_whole_ids_are_looked_up_and_nothing_else_is_looked_at(connection: Connection, asked: str) -> None:
    assert find(connection, asked, reach=1).searched_back_to is None
    assert find(connection, asked[:-1], reach=1).searched_back_to is not None
