"""Emails as Resend's clients read them, take them back and put them off: whose, in which order, and against whom."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.adapters.admin.deliveries import DeliveryAdmin
from opensend_milter.adapters.postgres.jobs import PostgresJobStore
from opensend_milter.adapters.postgres.letters import PostgresLetters
from opensend_milter.adapters.postgres.link import conninfo_for, statements
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import EmailId, KeyId, Sent
from opensend_milter.core.submission import Caller
from opensend_milter.servers.web.letters import MOST_BYTES
from tests.integration.emptied_database import Databases
from tests.integration.outbox import add_email, job_store, rows, state
from tests.integration.private_postgres import Cluster, Database
from tests.integration.test_http_outcomes import QUICK, Answering, answering, mail
from tests.waiting import await_true, patience_s

LETTER = {"from": "App <app@example.org>", "to": ["ann@example.net"], "subject": "hi", "text": "a text"}
LATER = LETTER | {"scheduled_at": "in 1 hour"}
NOBODYS = "00000000-0000-4000-8000-000000000000"
TOLD = {
    "object", "id", "message_id", "to", "from", "created_at", "subject", "bcc", "cc", "reply_to", "last_event",
    "scheduled_at", "topic_id", "html", "text", "tags", "sent_at", "recipients",
}  # fmt: skip


@dataclass(frozen=True)
class Door(Answering):
    """The process of all these tests, and a user of one test alone with his key."""

    user_id: str


@pytest.fixture(scope="module")
def _running(_shared_cluster: Cluster, _databases: Databases, _template: Path) -> Iterator[Answering]:
    # Beside those that are handed out one at a time.
    _shared_cluster.new_database("letters", template=_databases.template)
    with answering(Database("letters", _shared_cluster, _template), QUICK) as found:
        yield found
    _shared_cluster.drop_database("letters")


@pytest.fixture
def front_door(_running: Answering) -> Door:
    database, user_id = _running.database, f"u-{secrets.token_hex(4)}"
    rows(database, "INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', %s)", user_id)
    return Door(database, _running.port, new_key(database, user_id=user_id), user_id)


def new_key(database: Database, permission: str = "full_access", user_id: str = "u1") -> str:
    """Make a key; return its secret."""
    secret = f"os_{secrets.token_hex(16)}"
    add_key(database, permission, user_id, secret)
    return secret


def add_key(database: Database, permission: str = "full_access", user_id: str = "u1", secret: str = "") -> Caller:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    made = "INSERT INTO api_keys (name, token_hash, user_id, permission) VALUES ('t', %s, %s, %s) RETURNING id::text"
    ((key_id,),) = rows(database, made, digest, user_id, permission)
    return Caller(
        key_id=KeyId(key_id),
        networks=None,
        may_bulk=True,
        has_full_access=permission == "full_access",
        token_hash=digest,
    )


def sent(front_door: Answering, key: str = "", **changes: object) -> str:
    """Send one; return its id."""
    answer = front_door.ask("POST", "/emails", LETTER | changes, key)
    assert answer.status == 200, answer.body
    return str(answer.body["id"])


def later(front_door: Answering, key: str = "", **changes: object) -> str:
    return sent(front_door, key, **(LATER | changes))


def due(database: Database, email_id: str) -> None:
    """Let the time come for which it was put off."""
    rows(database, "UPDATE emails SET scheduled_at = now() - interval '1 second' WHERE id = %s", email_id)
    rows(
        database,
        "UPDATE opensend_milter.jobs SET not_before = now(), announce_at = now() WHERE email_id = %s",
        email_id,
    )


# ---------------------------------------------------------------------- whose


def test_a_key_reads_its_own_and_with_full_access_its_users(front_door: Door) -> None:
    """By id and in the list; what is another's is told as what is not there. Only full access changes anything."""
    database, user_id = front_door.database, front_door.user_id
    rows(database, "INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'stranger')")
    keys = {
        "full": front_door.key,
        "other": new_key(database, user_id=user_id),
        "sending": new_key(database, "sending_access", user_id),
        "odd": new_key(database, "read_only", user_id),
        "stranger": new_key(database, user_id="stranger"),
    }
    emails = {name: later(front_door, key) for name, key in keys.items() if name != "odd"}
    mine = {name: set(emails) - {"stranger"} for name in ("full", "other")}
    mine |= {"sending": {"sending"}, "odd": set(), "stranger": {"stranger"}}
    for name, key in keys.items():
        listed = front_door.ask("GET", "/emails", key=key).body
        assert {one["id"] for one in listed["data"]} == {emails[whose] for whose in mine[name]}, name
        for whose, email_id in [*emails.items(), ("nobody", NOBODYS)]:
            told = front_door.ask("GET", f"/emails/{email_id}", key=key)
            assert told.status == (200 if whose in mine[name] else 404), (name, whose)
            if told.status == 200:
                assert told.body["text"] == ("a text" if name in {"full", "other", "stranger"} else None), name
            else:
                assert (told.body["code"], told.body["name"]) == ("not_found", "not_found")
    for name, whose, status in (
        ("sending", "sending", 403), ("odd", "full", 403), ("stranger", "full", 404), ("full", "stranger", 404),
        ("full", "other", 200), ("other", "sending", 200),
    ):  # fmt: skip
        for method, path, body in (("PATCH", "", {"scheduled_at": "in 2 hours"}), ("POST", "/cancel", {})):
            told = front_door.ask(method, f"/emails/{emails[whose]}{path}", body, keys[name])
            assert told.status == status, (name, whose, method)
            assert told.body.get("name", "") == {403: "restricted_api_key", 404: "not_found"}.get(status, "")
    assert {state(database, EmailId(emails[name]))[0] for name in ("full", "stranger")} == {"scheduled"}
    assert {state(database, EmailId(emails[name])) for name in ("other", "sending")} == {("canceled", None)}


def test_an_email_is_told_as_resend_does(front_door: Door) -> None:
    email_id = sent(
        front_door,
        to=["Ann <ann@example.net>", "bob@example.net"],
        cc="cc@example.net",
        bcc=["hidden@example.net"],
        reply_to="answers@example.org",
        html="<p>hi</p>",
        tags=[{"name": "campaign", "value": "spring"}],
    )
    told = front_door.ask("GET", f"/emails/{email_id}").body
    assert told.keys() == TOLD
    assert told | {"created_at": "", "message_id": ""} == {
        "object": "email", "id": email_id, "message_id": "", "to": ["ann@example.net", "bob@example.net"],
        "from": "App <app@example.org>", "created_at": "", "subject": "hi", "bcc": ["hidden@example.net"],
        "cc": ["cc@example.net"], "reply_to": ["answers@example.org"], "last_event": "queued", "scheduled_at": None,
        "topic_id": None, "html": "<p>hi</p>", "text": "a text", "tags": [{"name": "campaign", "value": "spring"}],
        "sent_at": None, "recipients": [
            {"email": f"{name}@example.net", "status": "queued", "reason": None}
            for name in ("ann", "bob", "cc", "hidden")
        ],
    }  # fmt: skip
    assert email_id in told["message_id"]
    (listed,) = front_door.ask("GET", "/emails").body["data"]
    assert listed.keys() == TOLD - {"object", "html", "text", "tags", "sent_at", "recipients"}
    assert listed.items() <= told.items()


def test_what_is_as_large_as_a_large_request_is_shown_whole(front_door: Door) -> None:
    """It waits for room and for its turn, and gives both back."""
    text = "Grüße " * 60_000
    email_id = sent(front_door, text=text)
    for _ in range(3):
        assert front_door.ask("GET", f"/emails/{email_id}").body["text"] == text
    assert sent(front_door, text=text)


EVENTS = [
    ("processing", [], "queued"),
    ("queued", ["delayed"], "delivery_delayed"),
    ("processing", ["delayed"], "delivery_delayed"),
    ("sent", ["delayed", "sent"], "sent"),
    ("sent", ["sent", "delivery_delayed"], "delivery_delayed"),
    ("delivered", ["sent", "delivered", "opened", "clicked"], "clicked"),
    ("bounced", ["sent", "opened", "bounced"], "bounced"),
    ("cancelled", [], "canceled"),
    ("failed", ["delayed", "failed"], "failed"),
]


def test_the_last_event_is_told_in_resends_words(database: Database, letters: PostgresLetters) -> None:
    caller = add_key(database)
    for status, kinds, told in EVENTS:
        email_id = add_email(database, status=status)
        for seconds, kind in enumerate(kinds):
            note(database, email_id, kind, seconds)
        (letter,) = letters.letters(caller, [email_id], whole=False)
        assert letter.last_event == told, (status, kinds)


def note(database: Database, email_id: EmailId, kind: str, seconds: int) -> None:
    rows(
        database,
        "INSERT INTO email_events (email_id, type, payload, user_id, received_at)"
        " VALUES (%s, %s, '{}', 'u1', now() + make_interval(secs => %s))",
        email_id,
        kind,
        seconds,
    )


@pytest.fixture
def letters(database: Database) -> Iterator[PostgresLetters]:
    info = conninfo_for(database.url_for("opensend_http"), None, None)
    pool = Pool(info, connections=4, timeout_s=patience_s())
    yield PostgresLetters(pool)
    pool.close()


# ---------------------------------------------------------------------- in which order


def test_a_list_is_turned_page_by_page_both_ways(front_door: Door) -> None:
    ids = [sent(front_door) for _ in range(5)][::-1]

    def page(query: str) -> tuple[list[str], bool]:
        body = front_door.ask("GET", f"/emails?{query}").body
        assert body["object"] == "list"
        return [one["id"] for one in body["data"]], body["has_more"]

    assert page("") == (ids, False)
    assert page("limit=2") == (ids[:2], True)
    assert page(f"limit=2&after={ids[1]}") == (ids[2:4], True)
    assert page(f"limit=2&after={ids[3]}") == (ids[4:], False)
    assert page(f"limit=2&before={ids[3]}") == (ids[1:3], True)
    assert page(f"limit=2&before={ids[2]}") == (ids[:2], False)
    assert page(f"after={ids[4]}") == ([], False)
    newer = sent(front_door)
    assert page(f"limit=2&after={ids[1]}") == (ids[2:4], True), "what comes meanwhile moves nothing"
    assert page(f"before={ids[0]}") == ([newer], False)


HOSTILE = [
    "limit=0", "limit=101", "limit=-1", "limit=1e1", "limit=%EF%BC%91", "limit=" + "9" * 3_000, "limit=",
    "after=x", "after=", "before=%00", "after=" + "0" * 5_000, "before=';--", "status=sent", "after=%F0%9F%92%A9",
]  # fmt: skip


def test_hostile_values_of_paging_are_named(front_door: Door) -> None:
    for query in HOSTILE:
        told = front_door.ask("GET", f"/emails?{query}")
        assert (told.status, told.body["name"]) == (400, "validation_error"), query
        assert told.body["errors"][0]["field"] == query.partition("=")[0], query
        assert len(told.body["message"]) < 200
    for asked in (f"after={NOBODYS}", f"before={NOBODYS}"):
        assert front_door.ask("GET", f"/emails?{asked}").status == 404
    both = front_door.ask("GET", f"/emails?after={NOBODYS}&before={NOBODYS}")
    assert (both.status, both.body["errors"][0]["field"]) == (400, "before")


# ---------------------------------------------------------------------- taken back, put off


def test_a_scheduled_email_is_taken_back_once_and_for_all(front_door: Door) -> None:
    database, email_id = front_door.database, EmailId(later(front_door))
    before = front_door.ask("GET", f"/v1/submissions/{email_id}").body
    for _ in range(2):
        told = front_door.ask("POST", f"/emails/{email_id}/cancel", {})
        assert (told.status, told.body) == (200, {"object": "email", "id": email_id})
    assert state(database, email_id) == ("canceled", None)
    after = front_door.ask("GET", f"/v1/submissions/{email_id}").body
    assert (after["status"], after["attempts"]) == ("canceled", 0)
    assert after["updated_at"] > before["updated_at"]
    assert [one["status"] for one in after["recipients"]] == ["canceled"]
    refused = front_door.ask("PATCH", f"/emails/{email_id}", {"scheduled_at": "in 2 hours"})
    assert (refused.status, refused.body["code"], refused.body["name"]) == (400, "not_scheduled", "validation_error")
    assert "it is canceled" in refused.body["message"]


def test_what_is_not_scheduled_stays_as_it_is(database: Database, letters: PostgresLetters) -> None:
    caller = add_key(database)
    for status in ("queued", "processing", "sent", "bounced", "failed"):
        email_id = add_email(database, status=status)
        before = rows(database, "SELECT e, j FROM emails e, opensend_milter.jobs j")
        assert letters.cancel(caller, email_id) == status
        assert letters.reschedule(caller, email_id, datetime.now(UTC)) == status
        assert rows(database, "SELECT e, j FROM emails e, opensend_milter.jobs j") == before


def test_a_scheduled_email_is_put_off_with_its_job(front_door: Door) -> None:
    """And a worker that heard of it by the queue leaves it alone until then."""
    database, email_id = front_door.database, EmailId(later(front_door))
    at = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    for _ in range(2):
        told = front_door.ask("PATCH", f"/emails/{email_id}", {"id": email_id, "scheduledAt": at.isoformat()})
        assert (told.status, told.body) == (200, {"object": "email", "id": email_id})
    asked = (
        "SELECT e.status, e.scheduled_at, j.not_before, j.announce_at, j.state"
        " FROM emails e JOIN opensend_milter.jobs j ON j.email_id = e.id WHERE e.id = %s"
    )
    assert rows(database, asked, email_id) == [("scheduled", at, at, at, "waiting")]
    assert front_door.ask("GET", f"/emails/{email_id}").body["scheduled_at"] == f"{at:%Y-%m-%dT%H:%M:%S}.000Z"
    store = job_store(database)
    assert store.claim(email_id) is None
    assert email_id not in [one.email_id for one in store.due_announcements(1_000)]
    due(database, email_id)
    job = store.claim(email_id)
    store.close()
    assert job
    told = front_door.ask("PATCH", f"/emails/{email_id}", {"scheduled_at": "in 1 hour"})
    assert (told.status, told.body["code"]) == (400, "not_scheduled")


BAD_TIMES: list[tuple[object, int, str]] = [
    ({}, 400, "scheduled_at"),
    ({"scheduled_at": None}, 400, "scheduled_at"),
    ({"scheduled_at": 1}, 400, "scheduled_at"),
    ({"scheduled_at": "tomorrow"}, 400, "scheduled_at"),
    ({"scheduled_at": "2026-01-31T08:00:00"}, 400, "scheduled_at"),
    ({"scheduled_at": "2020-01-31T08:00:00Z"}, 400, "scheduled_at"),
    ({"scheduled_at": "9999-12-31T23:59:59-14:00"}, 400, "scheduled_at"),
    ({"scheduled_at": "0001-01-01T00:00:00+14:00"}, 400, "scheduled_at"),
    ({"scheduled_at": "in 0 minutes"}, 400, "scheduled_at"),
    ({"scheduled_at": "in 31 days"}, 400, "scheduled_at"),
    ({"scheduled_at": "in 999999 days"}, 400, "scheduled_at"),
    ({"scheduled_at": "in 1 hour", "subject": "x"}, 400, "subject"),
    ({"scheduled_at": "in 1 hour", "id": "another"}, 400, "id"),
    ([], 400, ""),
    ({"scheduled_at": "x" * MOST_BYTES}, 413, ""),
    ([[]] * MOST_BYTES, 413, ""),
]


def test_a_time_that_is_none_is_named_and_a_body_is_bounded(front_door: Door) -> None:
    email_id = EmailId(later(front_door))
    asked = "SELECT scheduled_at FROM emails WHERE id = %s"
    before = rows(front_door.database, asked, email_id)
    for body, status, field in BAD_TIMES:
        told = front_door.ask("PATCH", f"/emails/{email_id}", body)
        assert told.status == status, (str(body)[:80], told.body)
        assert [one["field"] for one in told.body.get("errors", ())] in ([field], [])
    assert front_door.ask("PATCH", f"/emails/{email_id}", {}, Content_Type="text/plain").status == 415
    assert rows(front_door.database, asked, email_id) == before
    for path in ("/emails/x", "/emails/%00", "/emails/x/cancel", f"/emails/{NOBODYS}/cancel"):
        method = "POST" if path.endswith("cancel") else "PATCH"
        assert front_door.ask(method, path, {"scheduled_at": "in 1 hour"}).status == 404


# ---------------------------------------------------------------------- against a worker


def awaits_a_lock(database: Database) -> bool:
    return bool(rows(database, "SELECT 1 FROM pg_locks WHERE NOT granted"))


@pytest.mark.parametrize("what", ["cancel", "reschedule"])
def test_who_comes_while_a_worker_claims_waits_and_comes_too_late(
    database: Database, letters: PostgresLetters, what: str
) -> None:
    caller, email_id = add_key(database), add_email(database, status="scheduled")
    due(database, email_id)
    taken = {"id": email_id, "lease": timedelta(minutes=1), "worker": "w"}

    def change() -> str | None:
        if what == "cancel":
            return letters.cancel(caller, email_id)
        return letters.reschedule(caller, email_id, datetime.now(UTC) + timedelta(hours=1))

    with ThreadPoolExecutor(1) as pool:
        with database.connect() as connection, connection.transaction():
            # The worker's two steps: first the job, then the row.
            assert connection.execute(statements("jobs")["take"], taken).fetchone()
            told = pool.submit(change)
            await_true(lambda: awaits_a_lock(database), "it waits for the worker")
            assert connection.execute(statements("jobs")["mark_processing"], {"id": email_id}).fetchone()
        assert told.result() == "processing"
    assert state(database, email_id) == ("processing", "claimed")


def test_of_a_claim_and_a_cancel_at_once_one_wins_each_time(database: Database, letters: PostgresLetters) -> None:
    caller, store = add_key(database), job_store(database)
    for _ in range(10):
        email_id = add_email(database, status="scheduled")
        due(database, email_id)
        with ThreadPoolExecutor(2) as pool:
            claimed, status = pool.submit(store.claim, email_id), pool.submit(letters.cancel, caller, email_id)
            job, told = claimed.result(), status.result()
        assert (job is None) == (told == "canceled"), told
        assert state(database, email_id) == (("canceled", None) if job is None else ("processing", "claimed"))
    store.close()


# ---------------------------------------------------------------------- beside OpenSend


OPENSENDS_CLAIM = """UPDATE emails SET status = 'processing' WHERE id = %s
    AND (status = 'queued' OR status = 'scheduled' AND scheduled_at <= now()) RETURNING id"""
"""As its worker takes a row up."""


def test_beside_opensend_its_rows_and_its_worker_are_respected(beside: Database) -> None:
    with answering(beside, {}, "opensend") as front_door:
        rests = new_email_id()
        rows(
            beside,
            """INSERT INTO emails (id, "from", "to", cc, subject, html, status, scheduled_at, user_id)
            VALUES (%s, 'a@example.org', '["ann@example.net"]', '["bob@example.net"]', 'of REST', '<p>x</p>',
                'scheduled', now() + interval '1 hour', 'u1')""",
            rests,
        )
        told = front_door.ask("GET", f"/emails/{rests}").body
        assert (told["subject"], told["html"], told["text"], told["bcc"]) == ("of REST", "<p>x</p>", None, [])
        assert [(one["email"], one["status"]) for one in told["recipients"]] == [
            ("ann@example.net", "scheduled"), ("bob@example.net", "scheduled"),
        ]  # fmt: skip
        assert front_door.ask("PATCH", f"/emails/{rests}", {"scheduled_at": "in 2 hours"}).status == 200
        assert rows(beside, "SELECT scheduled_at > now() + interval '90 minutes' FROM emails") == [(True,)]
        assert rows(beside, "SELECT email_id FROM opensend_milter.jobs") == [], "its own scheduler sends it"
        assert front_door.ask("POST", f"/emails/{rests}/cancel", {}).status == 200
        assert rows(beside, OPENSENDS_CLAIM, rests) == []

        announced = EmailId(later(front_door))
        due(beside, announced)
        store = job_store(beside, hand_over=True)
        store.announced([one.email_id for one in store.due_announcements(10)])
        assert state(beside, announced) == ("scheduled", None)
        assert front_door.ask("PATCH", f"/emails/{announced}", {"scheduled_at": "in 1 hour"}).status == 200
        assert rows(beside, OPENSENDS_CLAIM, announced) == [], "the hint comes too early"
        assert state(beside, announced) == ("scheduled", "waiting")
        due(beside, announced)
        assert [one.email_id for one in store.due_announcements(10)] == [announced]
        assert rows(beside, OPENSENDS_CLAIM, announced)
        assert front_door.ask("POST", f"/emails/{announced}/cancel", {}).body["message"].startswith("it is processing")
        store.close()


# ---------------------------------------------------------------------- figures


def test_attempts_and_the_last_change_are_true_after_the_end(front_door: Door) -> None:
    database = front_door.database
    store = job_store(database)
    with database.connect() as connection:
        admin = DeliveryAdmin(connection)
        told = {name: figures(front_door, end) for name, end in ends(database, store, admin).items()}
    store.close()
    assert told == {
        "failed": ("smtp_failed", 1, True),
        "sent after two": ("smtp_accepted", 3, True),
        "bounced": ("smtp_accepted", 1, True),
        "canceled after one": ("canceled", 1, True),
        "given up as unknown": ("smtp_failed", 2, True),
        "said to be sent": ("smtp_accepted", 1, True),
        "sent though unknown": ("smtp_accepted", 3, True),
    }


def figures(front_door: Door, end: Callable[[EmailId], object]) -> tuple[str, int, bool]:
    """Return state and attempts of a message that came to such an end, and whether its last change is later."""
    email_id = EmailId(sent(front_door))
    before = front_door.ask("GET", f"/v1/submissions/{email_id}").body
    end(email_id)
    after = front_door.ask("GET", f"/v1/submissions/{email_id}").body
    assert rows(front_door.database, "SELECT FROM opensend_milter.jobs WHERE email_id = %s", email_id) == []
    return after["status"], after["attempts"], after["updated_at"] > before["updated_at"]


def ends(database: Database, store: PostgresJobStore, admin: DeliveryAdmin) -> dict[str, Callable[[EmailId], object]]:
    def begun(email_id: EmailId) -> Any:
        rows(database, "UPDATE opensend_milter.jobs SET not_before = now() WHERE email_id = %s", email_id)
        job = store.claim(email_id)
        assert job
        assert store.begin(job)
        return job

    def deferred(email_id: EmailId, times: int) -> None:
        for _ in range(times):
            store.record_deferred(begun(email_id), "450 later", 60)

    def accepted(email_id: EmailId, deferrals: int = 0) -> None:
        deferred(email_id, deferrals)
        store.record_sent(begun(email_id), Sent(courier="smtp", reply="250 ok"))

    def bounced(email_id: EmailId) -> None:
        accepted(email_id)
        rows(
            database,
            "INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason)"
            " VALUES (%s, 'ann@example.net', 'bounced', '550 5.1.1')",
            email_id,
        )
        rows(database, "UPDATE emails SET status = 'bounced' WHERE id = %s", email_id)

    def canceled(email_id: EmailId) -> None:
        deferred(email_id, 1)
        admin.end([email_id], "canceled", "by hand")

    def unknown(email_id: EmailId, ending: Any, deferrals: int) -> None:
        deferred(email_id, deferrals)
        store.record_uncertain(begun(email_id), "the relay went away")
        assert admin.end([email_id], ending, "by hand").done

    def tried_again(email_id: EmailId) -> None:
        deferred(email_id, 1)
        store.record_uncertain(begun(email_id), "the relay went away")
        assert admin.retry([email_id]).done
        accepted(email_id)

    return {
        "failed": lambda email_id: store.record_failed(begun(email_id), "554 5.7.1 no"),
        "sent after two": lambda email_id: accepted(email_id, 2),
        "bounced": bounced,
        "canceled after one": canceled,
        "given up as unknown": lambda email_id: unknown(email_id, "failed", 1),
        "said to be sent": lambda email_id: unknown(email_id, "sent", 0),
        "sent though unknown": tried_again,
    }


# ---------------------------------------------------------------------- what was not taken


def refuse_over_smtp(database: Database, key_id: KeyId, rule: str) -> None:
    made = """INSERT INTO opensend_milter.refusals
        (rule, key_id, code, enhanced, text, front_door, queue_id, client_address, sender, recipients, size_bytes)
        VALUES (%s, %s, 550, '5.7.1', 'no', 'smtp', '4Xq', '::1', '', '{a@b.example}', 1)"""
    rows(database, made, rule, key_id)


def key_of(front_door: Door) -> KeyId:
    return KeyId(front_door.ask("GET", "/v1/keys/self").body["id"])


def walked(front_door: Door, query: str) -> list[dict[str, Any]]:
    """Turn all pages of a list."""
    found: list[dict[str, Any]] = []
    more = ""
    while True:
        body = front_door.ask("GET", f"/v1/submissions?{query}{more}").body
        assert body["submissions"]
        found += body["submissions"]
        if "next" not in body:
            return found
        more = f"&before={body['next']}"


def test_what_was_not_taken_is_listed_among_the_rest(front_door: Door) -> None:
    """By time, over HTTP or SMTP, each once however the pages fall; each has an id by which it is found."""
    database, key_id = front_door.database, key_of(front_door)
    other = new_key(database, user_id=front_door.user_id)
    refused, taken = [], []
    for _ in range(3):
        answer = front_door.ask("POST", "/v1/send", mail(**{"from": "a@unverified.test"}))
        assert answer.status == 400
        refused.append(answer.body["request_id"])
        taken.append(sent(front_door))
        refuse_over_smtp(database, key_id, "not-a-key")
    # Of one moment, as those of a bulk.
    with database.connect() as connection, connection.transaction():
        connection.execute("UPDATE opensend_milter.refusals SET refused_at = now() WHERE queue_id = '4Xq'")
        connection.execute("UPDATE opensend_milter.submissions SET received_at = now() WHERE key_id = %s", [key_id])
    assert front_door.ask("POST", "/v1/send", mail(), other).status == 202
    whole = front_door.ask("GET", "/v1/submissions").body
    assert "next" not in whole
    listed = whole["submissions"]
    assert [one["status"] for one in listed] == ["received"] * 3 + ["rejected"] * 6
    assert [one["id"] for one in listed if one["id"]] == taken[::-1]
    assert [one["request_id"] for one in listed[6:]] == refused[::-1]
    assert [one["code"] for one in listed[3:]] == ["not-a-key"] * 3 + ["from-unverified"] * 3
    assert [walked(front_door, f"limit={size}") for size in (1, 2, 4)] == [listed] * 3
    assert walked(front_door, "status=rejected&limit=4") == listed[3:]
    assert walked(front_door, "status=received&limit=2") == listed[:3]
    for one in listed:
        assert front_door.ask("GET", f"/v1/submissions/{one['request_id']}").body == one
        assert front_door.ask("GET", f"/v1/submissions/{one['request_id']}", key=other).status == 404
    refuse_over_smtp(database, key_id, "not-a-key")
    assert walked(front_door, f"before={listed[1]['request_id']}") == listed[2:]
    assert front_door.ask("GET", f"/v1/submissions?before={NOBODYS}").status == 404


def test_a_state_lists_what_shows_it(front_door: Door) -> None:
    """What was tried, and waits to be tried again, is not merely received."""
    fresh, tried = sent(front_door), EmailId(sent(front_door))
    store = job_store(front_door.database)
    job = store.claim(tried)
    assert job
    assert store.begin(job)
    for after in ("under way", "deferred"):
        if after == "deferred":
            store.record_deferred(job, "450 later", 60)
        for state_, ids in (("received", [fresh]), ("smtp_submission_started", [tried])):
            listed = front_door.ask("GET", f"/v1/submissions?status={state_}").body["submissions"]
            assert [(one["id"], one["status"]) for one in listed] == [(one, state_) for one in ids], after
    store.close()
