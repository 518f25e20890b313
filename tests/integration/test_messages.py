"""What a key may know of messages: its own, with full access its user's, and nobody else's however it asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, LiteralString
from urllib.parse import quote

import pytest

from opensend_milter.adapters.postgres.lookup import filling
from opensend_milter.adapters.postgres.lookup.filling import SearchTable
from opensend_milter.app.web import CONNECTIONS
from opensend_milter.servers.web.messages import AT_ONCE, FILTERS
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_http_outcomes import QUICK, Answering, answering
from tests.waiting import await_true, patience_s

KEYS: Mapping[str, tuple[str, str, str]] = {
    "own": ("11111111-1111-4111-8111-111111111111", "shop", "sending_access"),
    "colleague": ("22222222-2222-4222-8222-222222222222", "shop", "sending_access"),
    "chief": ("33333333-3333-4333-8333-333333333333", "shop", "full_access"),
    "stranger": ("44444444-4444-4444-8444-444444444444", "bank", "full_access"),
}
"""Id, user, permission."""
MESSAGES = {name: f"01a22a0c-f6a{at}-4d1e-9651-279c9f1ee06{at}" for at, name in enumerate(KEYS)}
MAY_READ: Mapping[str, set[str]] = {
    "own": {"own"},
    "colleague": {"colleague"},
    "chief": {"own", "colleague", "chief"},
    "stranger": {"stranger"},
}
NO_ROW_MEANWHILE: Sequence[LiteralString] = (
    "SELECT pg_advisory_lock(1)",
    "ALTER TABLE public.emails ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY slow ON public.emails USING (pg_advisory_xact_lock_shared(1) IS NOT NULL)",
)
"""Not by a lock on the table: a new connection, which looks at its columns first, would wait for that too."""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'opensend_http' AND wait_event = 'advisory'"
NOWHERE = "01a22a0c-ffff-4d1e-9651-279c9f1ee06f"


@pytest.fixture(params=["not noted", "noted"])
def door(database: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """A front door, and a message and a refusal of each key, of which the worker has noted the one or not."""
    with database.connect() as connection:
        for at, (name, (key_id, user, permission)) in enumerate(KEYS.items()):
            digest = hashlib.sha256(f"os_{name}".encode()).hexdigest()
            values = {
                "id": MESSAGES[name],
                "key": key_id,
                "user": user,
                "name": name,
                "queue_id": f"4jd5rb6fZCzRW0{at}",
            }
            connection.execute(
                "INSERT INTO api_keys (id, name, token_hash, user_id, permission) VALUES (%s, %s, %s, %s, %s)",
                [key_id, name, digest, user, permission],
            )
            connection.execute(
                """INSERT INTO emails (id, "from", "to", bcc, subject, status, user_id, created_at) VALUES (%(id)s,
                'app@example.org', '["to@example.net"]', '["hidden@example.net"]', 'a parcel from ' || %(name)s, 'sent',
                %(user)s, now())""",
                values,
            )
            connection.execute(
                """INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door,
                queue_id, client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
                VALUES (%(id)s, now(), %(user)s, %(key)s, 'smtp', %(queue_id)s, '192.0.2.7', '', 'app@example.org',
                'app@example.org', '{to@example.net,hidden@example.net}', '<' || %(name)s || '@example.org>', 7, '')""",
                values,
            )
            connection.execute(
                """INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id,
                client_address, key_id, user_id, sender, recipients, size_bytes) VALUES ('too-large', 552, '5.3.4',
                'too large', 'smtp', 'refused' || %(queue_id)s, '192.0.2.7', %(key)s, %(user)s, 'app@example.org',
                '{to@example.net}', 7)""",
                values,
            )
    if request.param == "noted":
        monkeypatch.setattr(filling, "SETTLED", timedelta(0))
        table = SearchTable(database.url_for("opensend_worker"), name="opensend-search", timeout_s=patience_s())
        assert table.fill()
        table.close()
    with answering(database, QUICK) as found:
        yield found


def got(door: Answering, reader: str, path: str) -> tuple[int, Any]:
    answer = door.ask("GET", path, key=f"os_{reader}")
    return answer.status, answer.body


def listed(door: Answering, reader: str, **query: str) -> list[dict[str, Any]]:
    asked = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    status, body = got(door, reader, f"/v1/messages?{asked}")
    assert status == 200, body
    found: list[dict[str, Any]] = body["messages"]
    return found


def test_a_key_reads_its_own_and_with_full_access_its_users(door: Answering) -> None:
    """By id, by search and in lists: others are not told from those that are not there."""
    for reader, readable in MAY_READ.items():
        unknown = got(door, reader, f"/v1/messages/{NOWHERE}")
        assert unknown[0] == 404
        for owner, email_id in MESSAGES.items():
            status, body = got(door, reader, f"/v1/messages/{email_id}")
            assert status == (200 if owner in readable else 404)
            if owner in readable:
                assert (body["id"], body["subject"]) == (email_id, f"a parcel from {owner}")
            else:
                assert {**body, "request_id": ""} == {**unknown[1], "request_id": ""}
            (refusal,) = door.rows("SELECT id::text FROM opensend_milter.refusals WHERE key_id = %s", KEYS[owner][0])
            assert got(door, reader, f"/v1/messages/{refusal[0]}")[0] == (200 if owner in readable else 404)
        everything = listed(door, reader)
        assert {one["key_name"] for one in everything} == readable
        assert len(everything) == 2 * len(readable)
        for asked in ("hidden@example.net", "to@example.net", "parcel", "@example.org"):
            found = listed(door, reader, q=asked)
            assert {one["key_name"] for one in found} == readable, asked
        for owner in KEYS:
            for asked in (MESSAGES[owner], MESSAGES[owner][:13], MESSAGES[owner][-12:], f"{owner}@example.org"):
                found = listed(door, reader, q=asked)
                assert {one["id"] for one in found} == ({MESSAGES[owner]} if owner in readable else set()), asked
            by_key = listed(door, reader, key=KEYS[owner][0])
            assert {one["key_name"] for one in by_key} == ({owner} & readable)


BAD = [
    ("status=lost", "status"),
    ("rule=none", "rule"),
    ("courier=pigeon", "courier"),
    ("key=own", "key"),
    ("since=yesterday", "since"),
    ("limit=0", "limit"),
    ("before=now", "before"),
    ("before=99999999999999999999-7", "before"),
    (f"q={'x' * 1_001}", "q"),
    ("domain=", "domain"),
    ("what=ever", "what"),
]


HOSTILE = [
    "'; DROP TABLE emails; --",
    "%' OR '1'='1",
    "%",
    "_" * 13,
    "\\",
    "\x00",
    "\x1b[2J\u202e",
    "(" * 500,
    "x" * 1_000,
    "ﷺ" * 300,
    "e\u0301" * 300,
    "\ud800",
    "01a22a0c-f6a0-4d1e-9651-279c9f1ee060' OR true",
    "-1",
    "9" * 40,
]


def test_it_is_asked_in_every_way(door: Answering) -> None:
    """One front door for all of them: it takes seconds to start."""
    pages_follow_each_other_and_leave_nothing_out(door)
    what_is_not_understood_is_named(door)
    hostile_words_find_nothing_and_harm_nothing(door)
    every_filter_is_heard(door)
    a_refusal_is_told_with_its_rule_and_what_mends_it(door)


def pages_follow_each_other_and_leave_nothing_out(door: Answering) -> None:
    seen: list[str] = []
    path = "/v1/messages?limit=2"
    while path:
        _, body = got(door, "chief", path)
        assert len(body["messages"]) <= 2
        seen += [one["id"] for one in body["messages"]]
        path = f"/v1/messages?limit=2&before={body['next']}" if "next" in body else ""
    assert len(seen) == len(set(seen)) == 6


def what_is_not_understood_is_named(door: Answering) -> None:
    for query, field in BAD:
        status, body = got(door, "own", f"/v1/messages?{query}")
        assert (status, [one["field"] for one in body["errors"]]) == (400, [field]), query


def hostile_words_find_nothing_and_harm_nothing(door: Answering) -> None:
    for words in HOSTILE:
        asked = quote(words.encode("utf-8", "surrogatepass"))
        status, body = got(door, "chief", f"/v1/messages?q={asked}")
        assert (status, body.get("messages")) == (200, []), (words, body)
        if words != "\\":
            assert got(door, "chief", f"/v1/messages/{asked.replace('/', '%2F')}")[0] == 404, words
    assert door.rows("SELECT count(*) FROM emails") == [(4,)]


def every_filter_is_heard(door: Answering) -> None:
    assert set(FILTERS) == {"q", "since", "key", "domain", "status", "rule", "courier", "before", "limit"}
    kinds = {
        query: {one["kind"] for one in listed(door, "chief", **query_of(query))}
        for query in (
            "status=refused", "status=sent", "status=failed", "rule=too-large", "rule=ours", "domain=example.org",
            "domain=example.com", "since=2020-01-01T00:00:00Z", "since=2999-01-01T00:00:00Z", "courier=smtp",
        )
    }  # fmt: skip
    assert kinds == {
        "status=refused": {"refusal"},
        "status=sent": {"message"},
        "status=failed": set(),
        "rule=too-large": {"refusal"},
        "rule=ours": set(),
        "domain=example.org": {"message", "refusal"},
        "domain=example.com": set(),
        "since=2020-01-01T00:00:00Z": {"message", "refusal"},
        "since=2999-01-01T00:00:00Z": set(),
        "courier=smtp": set(),
    }


def query_of(text: str) -> dict[str, str]:
    name, _, value = text.partition("=")
    return {name: value}


def a_refusal_is_told_with_its_rule_and_what_mends_it(door: Answering) -> None:
    (refusal,) = door.rows("SELECT id::text FROM opensend_milter.refusals WHERE key_id = %s", KEYS["own"][0])
    _, body = got(door, "own", f"/v1/messages/{refusal[0]}")
    assert (body["status"], body["verdict"]) == ("refused", "refused by rule too-large: 552 5.3.4 too large")
    assert body["cause"].startswith("Larger than")
    assert [one["text"] for one in body["next_steps"]] == ["Send less, or raise the limit."]


def test_who_looks_for_much_takes_no_connection_from_who_sends(door: Answering, database: Database) -> None:
    """As many look as there are connections, and no row is given; another key is told of itself meanwhile."""
    with database.connect() as holder, ThreadPoolExecutor(CONNECTIONS) as pool:
        for statement in NO_ROW_MEANWHILE:
            holder.execute(statement)
        looking = [pool.submit(got, door, "stranger", "/v1/messages?q=parcel") for _ in range(CONNECTIONS)]
        await_true(lambda: rows(database, WAITING) == [(AT_ONCE,)], "as many look as may")
        assert got(door, "own", "/v1/keys/self")[0] == 200
        holder.execute("SELECT pg_advisory_unlock(1)")
        assert {one.result()[0] for one in looking} <= {200, 503}
