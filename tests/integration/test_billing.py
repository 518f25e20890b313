"""Beside a hosted OpenSend: who has paid, and what is counted for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.postgres.intake import SQL
from opensend_milter.adapters.postgres.link import Connection
from tests.integration.billing_tables import END, START, subscribe, without_foreign_keys
from tests.integration.private_postgres import Cluster, Database
from tests.integration.serving import Account, Serving, serving
from tests.milter_client import Answer
from tests.waiting import patience_s

TAKEN = Answer("d")
CLIENTS = 30
MAIL = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
NOT_ALLOWED = b"From: app@other.example\r\n\r\nhello\r\n"


@pytest.fixture(scope="module")
def billed(_shared_cluster: Cluster, _beside_template: Path) -> Iterator[Serving]:
    """One milter for all tests of this module."""
    url = _shared_cluster.new_database("billed", template="template_beside")
    with serving(url, _beside_template, profile="opensend", billing="stripe") as running:
        yield running
    _shared_cluster.drop_database("billed")


@pytest.fixture
def account(billed: Serving) -> Account:
    """Make a user of this test's own, without a subscription."""
    return billed.account()


def usage(account: Account, columns: str = "emails_sent") -> list[tuple[object, ...]]:
    """Return what is counted, oldest period first."""
    return account.rows(f"SELECT {columns} FROM usage_periods WHERE user_id = %s ORDER BY period_start")  # noqa: S608


def ago(**how_long: float) -> datetime:
    return datetime.now(UTC) - timedelta(**how_long)


@pytest.mark.case(71)
def test_a_paid_message_is_counted_in_its_period(account: Account) -> None:
    subscribe(account)
    before = datetime.now(UTC)
    assert account.send(MAIL, "a@example.net", "b@example.net", "c@example.net") == TAKEN
    assert usage(account, "period_start, period_end, emails_sent, included_email_quota") == [(START, END, 1, 15_000)]
    ((counted_at,),) = usage(account, "last_increment_at")
    assert isinstance(counted_at, datetime)
    assert counted_at > before - timedelta(seconds=30)
    assert account.send(MAIL) == TAKEN
    assert usage(account) == [(2,)], "one a message, not a recipient"
    assert usage(account, "usage_warning_80_notified_at, usage_warning_100_notified_at") == [(None, None)]


def test_without_a_period_of_its_own_it_is_the_month_of_utc(account: Account) -> None:
    subscribe(account, period=(None, None))
    assert account.send(MAIL) == TAKEN
    ((start, end),) = usage(account, "period_start, period_end")
    now = datetime.now(UTC)
    assert isinstance(start, datetime)
    assert isinstance(end, datetime)
    assert start == now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert timedelta(days=27) < end - start < timedelta(days=32)
    assert end > now


@pytest.mark.case(71)
@pytest.mark.parametrize(
    ("subscription", "code"),
    [
        ({}, 0),
        ({"status": "trialing"}, 0),
        ({"status": "past_due", "period": (START, ago(days=2, hours=23))}, 0),
        ({"status": "past_due", "period": (START, ago(days=-20))}, 0),
        ({"status": "past_due", "period": (START, ago(days=3, minutes=5))}, 452),
        ({"status": "past_due", "period": (None, None)}, 452),
        ({"status": "past_due", "period": (START, ago(days=4)), "slug": "free", "price": 0}, 452),
        ({"status": "past_due", "period": (START, ago(days=1)), "price": 0}, 550),
        ({"status": "canceled"}, 550),
        ({"status": "unpaid"}, 550),
        ({"status": "incomplete"}, 550),
        ({"slug": "free", "price": 1_000}, 550),
        ({"slug": "free_of_charge", "price": 0}, 550),
        ({"quota": 0}, 0),
        ({"period": (ago(days=60), ago(days=30))}, 0),
    ],
)
def test_who_has_paid_may_send(account: Account, subscription: dict[str, object], code: int) -> None:
    subscribe(account, **subscription)  # type: ignore[arg-type]  # one of each type
    answer = account.send(MAIL)
    if code:
        assert (answer.code, answer.text[4:].split(" ")[0]) == (code, "4.7.1" if code == 452 else "5.7.1")
        assert "quota" in answer.text
        assert account.emails() == []
        assert usage(account) == []
        assert account.rows("SELECT rule, code FROM opensend_milter.refusals WHERE user_id = %s") == [("quota", code)]
        assert account.rows("SELECT status FROM logs WHERE user_id = %s") == [(402,)]
    else:
        assert answer == TAKEN
        assert usage(account) == [(1,)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM subscriptions WHERE user_id = %s", "none"),
        ("UPDATE subscriptions SET plan_id = gen_random_uuid() WHERE user_id = %s", "missing_plan"),
        ("UPDATE plans SET monthly_price_cents = 0 WHERE strpos(slug, left(%s, 40)) > 0", "legacy_free"),
    ],
)
def test_what_ends_holds_from_the_next_message_on(account: Account, change: str, reason: str) -> None:
    subscribe(account)
    assert account.send(MAIL) == TAKEN
    without_foreign_keys(account, change)
    answer = account.send(MAIL)
    assert answer.text.startswith("550 5.7.1 ")
    assert f"({reason})" in answer.text
    assert usage(account) == [(1,)]


def test_a_new_period_is_a_row_of_its_own(account: Account) -> None:
    subscribe(account)
    assert account.send(MAIL) == TAKEN
    account.rows(
        "UPDATE subscriptions SET current_period_start = current_period_end,"
        " current_period_end = current_period_end + interval '31 days' WHERE user_id = %s"
    )
    for _ in range(2):
        assert account.send(MAIL) == TAKEN
    assert usage(account) == [(1,), (2,)]


def warned(account: Account) -> tuple[object, object]:
    ((at_80, at_100),) = usage(account, "usage_warning_80_notified_at, usage_warning_100_notified_at")
    return at_80, at_100


def test_the_thresholds_are_noted_once_and_stop_nothing(account: Account) -> None:
    subscribe(account, quota=4)
    for count, expected in [(3, (False, False)), (1, (True, True))]:
        for _ in range(count):
            assert account.send(MAIL) == TAKEN
        assert tuple(at is not None for at in warned(account)) == expected
    first = warned(account)
    assert account.send(MAIL) == TAKEN
    assert warned(account) == first
    assert usage(account) == [(5,)]


def test_four_fifths_are_rounded_up(account: Account) -> None:
    subscribe(account, quota=6)
    for _ in range(4):
        assert account.send(MAIL) == TAKEN
    assert warned(account) == (None, None)
    assert account.send(MAIL) == TAKEN
    assert [at is not None for at in warned(account)] == [True, False]


def test_the_first_message_may_be_the_one_that_is_noted(account: Account) -> None:
    subscribe(account, quota=1)
    assert account.send(MAIL) == TAKEN
    assert None not in warned(account)


def test_a_quota_of_nothing_is_never_used_up(account: Account) -> None:
    """OpenSend asks for a threshold above zero."""
    subscribe(account, quota=0)
    for _ in range(2):
        assert account.send(MAIL) == TAKEN
    assert warned(account) == (None, None)


def test_a_period_that_opensend_began_is_gone_on_with(account: Account) -> None:
    """OpenSend makes rows without a quota too, and fills it in when it counts."""
    subscribe(account, quota=100)
    account.rows(
        "INSERT INTO usage_periods (user_id, period_start, period_end, emails_sent) VALUES (%s, %s, %s, 79)", START, END
    )
    assert account.send(MAIL) == TAKEN
    assert usage(account, "emails_sent, included_email_quota, usage_warning_80_notified_at IS NOT NULL") == [
        (80, 100, True)
    ]
    account.rows("UPDATE usage_periods SET included_email_quota = 90 WHERE user_id = %s")
    assert account.send(MAIL) == TAKEN
    assert usage(account, "emails_sent, included_email_quota") == [(81, 90)], "what the period began with stays"


def test_what_is_not_taken_or_taken_already_is_not_counted(account: Account) -> None:
    subscribe(account)
    account.suppress("bad@example.net")
    named = b"Message-ID: <1@app>\r\n" + MAIL
    assert account.send(NOT_ALLOWED).code == 550
    assert account.send(MAIL, "bad@example.net").code == 550
    assert account.send(b"Idempotency-Key:\r\n" + MAIL).code == 554
    assert usage(account) == []
    for _ in range(3):
        assert account.send(named) == TAKEN
    assert usage(account) == [(1,)]


def test_thirty_clients_make_one_row(billed: Serving) -> None:
    accounts = [billed.account() for _ in range(3)]
    for account in accounts:
        subscribe(account, quota=20)
    start = threading.Barrier(CLIENTS, timeout=patience_s())

    def send(number: int) -> list[Answer]:
        account = accounts[number % len(accounts)]
        with billed.client() as client:
            start.wait()
            return [client.message(account.key, MAIL) for _ in range(4)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for found in pool.map(send, range(CLIENTS)) for answer in found]
    assert set(answers) == {TAKEN}
    for account in accounts:
        assert usage(account) == [(CLIENTS * 4 // len(accounts),)]
        assert None not in warned(account)


def test_batches_that_hold_the_same_users_in_another_order(beside: Database) -> None:
    """Whoever is second waits: a deadlock would tempfail all that share its batch."""
    users = ["u1", "u2", "u3"]
    errors: list[Exception] = []
    with beside.connect() as connection:
        connection.execute("SET session_replication_role = replica")  # no plan is asked for
        connection.execute(
            "INSERT INTO subscriptions (user_id, plan_id) SELECT unnest(%s::text[]), gen_random_uuid()", [users]
        )

    def reserve(connection: Connection, order: list[str]) -> None:
        try:
            connection.execute(SQL["reserve"], {"user_ids": order, "counts": [1] * len(order)})
        except psycopg.Error as error:
            errors.append(error)

    with beside.connect() as holder, beside.connect("opensend_milter") as one, beside.connect() as other:
        for connection in (one, other):
            # As it is planned where there are many: in the order of what is asked.
            connection.execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off")
        reserve(holder, users)
        threads = [
            threading.Thread(target=reserve, args=(connection, order))
            for connection, order in ((one, ["u1", "u3", "u2"]), (other, ["u2", "u3", "u1"]))
        ]
        with holder.transaction():
            reserve(holder, ["u3"])
            for thread in threads:
                thread.start()
            beside.await_blocked(2)
        for thread in threads:
            thread.join()
        assert errors == []
        assert holder.execute("SELECT DISTINCT emails_sent FROM usage_periods WHERE user_id <> 'u3'").fetchall() == [
            (3,)
        ]


@pytest.fixture
def trouble(billed: Serving) -> Iterator[None]:
    """Let the database refuse a row that asks for it."""
    billed.rows(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF strpos(to_jsonb(new)::text, 'no-' || TG_TABLE_NAME) > 0 THEN RAISE 'refused'; END IF; RETURN new; END $$"
    )
    for table in ("emails", "logs", "usage_periods"):
        billed.rows(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
    yield
    billed.rows("DROP FUNCTION refuse CASCADE")


@pytest.mark.usefixtures("trouble")
@pytest.mark.parametrize("place", ["emails", "logs", "usage_periods"])
def test_the_count_and_the_message_stand_or_fall_together(account: Account, place: str) -> None:
    """Of emails, logs and usage_periods, which are written in this order."""
    subscribe(account)
    assert account.send(MAIL) == TAKEN
    if place == "usage_periods":
        for table in ("api_keys", "subscriptions", "domains"):
            account.rows(f"UPDATE {table} SET user_id = 'no-usage_periods-' || user_id WHERE user_id = %s")  # noqa: S608
    assert account.send(MAIL, f"no-{place}@example.net").text.startswith("451 4.3.0 ")
    ((count, counted),) = account.served.rows(
        "SELECT (SELECT count(*) FROM emails WHERE strpos(user_id, %s) > 0),"
        " (SELECT sum(emails_sent) FROM usage_periods WHERE strpos(user_id, %s) > 0)",
        account.user_id,
        account.user_id,
    )
    assert (count, counted) == (1, 1)


def test_without_the_setting_nothing_is_asked_or_counted(beside: Database) -> None:
    """The tables are there, and the roles have no rights on them."""
    with beside.connect() as connection:
        connection.execute("REVOKE ALL ON plans, subscriptions, usage_periods FROM opensend_milter, opensend_http")
    with serving(beside.url, beside.password_dir, profile="opensend") as served:
        assert served.account().send(MAIL) == TAKEN
        assert served.rows("SELECT * FROM usage_periods") == []


@pytest.mark.altered_tables
def test_billing_that_is_not_there_is_no_reason_to_refuse_for_good(beside: Database) -> None:
    """Configured where no OpenSend has it: a fault of ours, so 451."""
    with beside.connect() as connection:
        connection.execute("DROP TABLE usage_periods, subscriptions, plans")
    with serving(beside.url, beside.password_dir, profile="opensend", billing="stripe") as served:
        assert served.account().send(MAIL).code == 451
        assert served.counts() == (0, 0, 0)
