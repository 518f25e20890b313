"""By what messages are known is noted for searches: of all, once, whatever happens meanwhile; not of what is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup import filling, search
from opensend_milter.adapters.postgres.lookup.filling import SearchTable
from opensend_milter.adapters.postgres.lookup.search import find
from opensend_milter.cli import app_of
from opensend_milter.config import PATH_VARIABLE
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.lookup import Filters, Place, Scope
from opensend_milter.core.model import KeyId, UserId
from tests.integration.private_postgres import Database
from tests.waiting import await_true, patience_s

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
COUNT = 60
KEYS = {"shop": KeyId("11111111-1111-4111-8111-111111111111"), "bank": KeyId("44444444-4444-4444-8444-444444444444")}
ASKED = (
    "every", "every parcel", "third", "number 7", "to7@example.net", "@example.net", "@example.org", "TO7@Example.NET",
    "<m7@example.org>", "m7@example.org", "4d1e96510007", "every nothing", "app@example.org", "every 59",
)  # fmt: skip
SCOPES = (Scope(user_id=UserId("shop")), Scope(reads_by=KEYS["shop"]), Scope(reads_by=KEYS["bank"]))
FILTERS = (
    Filters(key_id=KEYS["bank"]), Filters(since=BEGAN + timedelta(minutes=30)), Filters(status="sent"),
)  # fmt: skip
HOW = [*((Filters(), scope) for scope in SCOPES), *((filters, Scope()) for filters in FILTERS), (Filters(), Scope())]


def id_of(number: int) -> str:
    """Most ids do not lie in the order of time, as those of OpenSend's own."""
    return f"{number * 7919 % 65536:08x}-0000-4000-8000-4d1e9651{number:04x}"


def put(connection: Connection, numbers: Sequence[int], *, at: datetime = BEGAN) -> None:
    """Put in messages a minute apart, two at a time; those that three divides are the bank's and have no submission."""
    for number in numbers:
        user = "shop" if number % 3 else "bank"
        end = "" if number % 3 else " third"
        values = {
            "id": id_of(number),
            "user": user,
            "number": number,
            "at": at + timedelta(minutes=number // 2),
            "subject": f"every {'parcel' if number % 2 else 'letter'} has number {number}{end}",
            "key": KEYS[user],
        }
        connection.execute(
            """INSERT INTO emails (id, "from", "to", subject, status, user_id, created_at) VALUES (%(id)s,
            'App <app@example.org>', jsonb_build_array('to' || %(number)s::text || '@example.net'), %(subject)s, 'sent',
            %(user)s, %(at)s)""",
            values,
        )
        if number % 3:
            connection.execute(
                """INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door,
                queue_id, client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
                VALUES (%(id)s, %(at)s, %(user)s, %(key)s, 'smtp', '', '', '', 'app@example.org', 'app@example.org',
                ARRAY['to' || %(number)s::text || '@example.net'], '<m' || %(number)s::text || '@example.org>', 1,
                '')""",
                values,
            )


@pytest.fixture
def owner(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Two users with a key each, one of full access; stretches of time and batches are short."""
    monkeypatch.setattr(filling, "AT_ONCE", 7)
    monkeypatch.setattr(filling, "STRETCH", 10)
    monkeypatch.setattr(filling, "SETTLED", timedelta(0))
    monkeypatch.setattr(search, "PAGE", 4)
    with database.connect() as opened:
        opened.execute(
            "INSERT INTO api_keys (id, name, token_hash, user_id, permission) VALUES"
            " (%s, 'a', 'a', 'shop', 'sending_access'), (%s, 'b', 'b', 'bank', 'full_access')",
            [KEYS["shop"], KEYS["bank"]],
        )
        yield opened


@pytest.fixture
def reader(database: Database, owner: Connection) -> Iterator[Connection]:
    put(owner, range(COUNT))
    with database.connect("opensend_reader") as opened:
        yield opened


@pytest.fixture
def config(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file that commands read."""
    path = tmp_path / "opensend-milter.yaml"
    path.write_text("profile: standalone\n")
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    monkeypatch.setenv("DATABASE_URL", database.url)
    return path


@pytest.fixture
def table(database: Database) -> Iterator[SearchTable]:
    """As the worker has it."""
    opened = SearchTable(database.url_for("opensend_worker"), name="opensend-search", timeout_s=patience_s())
    yield opened
    opened.close()


def fill(table: SearchTable) -> None:
    while batch := table.fill(wait=True):
        if not batch.is_full:
            return


def noted(owner: Connection) -> list[str]:
    return [row[0] for row in owner.execute("SELECT email_id::text FROM opensend_milter.search ORDER BY created_at")]


def found(reader: Connection, asked: str, *, limit: int = 50, reach: int = search.REACH) -> list[int]:
    return [int(one.id[-4:], 16) for one in find(reader, asked, limit=limit, reach=reach).rows]


def answers(reader: Connection) -> dict[object, list[str]]:
    """Return all that is found by whatever is asked, page by page."""
    pages: dict[object, list[str]] = {}
    for asked, (filters, scope) in [*product(ASKED[:3], HOW), *product(ASKED[3:], HOW[-1:])]:
        ids: list[str] = []
        place: Place | None = None
        while place or not ids:
            page = find(reader, asked, filters, scope, limit=25, before=place)
            ids += [one.id for one in page.rows] or ["nothing"]
            place = page.rows[-1].place if page.more else None
        pages[asked, scope, filters] = ids
    return pages


def test_the_table_finds_what_a_look_at_all_messages_finds(
    owner: Connection, reader: Connection, table: SearchTable
) -> None:
    """In the same order, on the same pages, for everybody; not noted, half noted, and all."""
    by_looking = answers(reader)
    assert by_looking["every", Scope(), Filters()] == [
        id_of(number) for number in sorted(range(COUNT), key=lambda one: (one // 2, id_of(one)), reverse=True)
    ]
    for _ in range(4):
        table.fill()
    assert 0 < len(noted(owner)) < COUNT
    assert answers(reader) == by_looking
    fill(table)
    assert len(noted(owner)) == COUNT
    assert answers(reader) == by_looking


def test_what_is_noted_is_found_however_far_back_it_is(reader: Connection, table: SearchTable) -> None:
    assert find(reader, "to1@example.net", reach=5).searched_back_to
    fill(table)
    for asked in ("to1@example.net", "m1@example.org", id_of(1)[-12:], "number 1"):
        answer = find(reader, asked, reach=5)
        assert [one.id for one in answer.rows] == [id_of(1)], asked
        assert answer.searched_back_to is None


def test_a_domain_that_sent_little_is_found_however_far_back_that_is(
    owner: Connection, reader: Connection, table: SearchTable
) -> None:
    """Whichever way it is written; one that only got something is let through by nothing."""
    owner.execute("""UPDATE emails SET "from" = 'App <app@Bücher.example>' WHERE subject LIKE 'every % number 6 %'""")
    here = Filters(domain="bücher.example")
    assert find(reader, None, here, reach=5).rows == []
    fill(table)
    for domain in ("bücher.example", "xn--bcher-kva.example", "@BÜCHER.example"):
        answer = find(reader, None, Filters(domain=domain), reach=5)
        assert [one.id for one in answer.rows] == [id_of(6)], domain
        assert answer.searched_back_to is None
    assert [one.id for one in find(reader, "letter", here, reach=5).rows] == [id_of(6)]
    assert find(reader, "parcel", here, reach=5).rows == []
    assert find(reader, None, Filters(domain="example.net")).rows == []


def test_a_word_of_all_messages_is_looked_for_in_the_newest_only(
    owner: Connection, reader: Connection, table: SearchTable
) -> None:
    """And where filters let nothing of it through, so far that it can be said."""
    fill(table)
    stretches = "SELECT number, messages FROM opensend_milter.search_stretches ORDER BY number"
    assert owner.execute(stretches).fetchall() == [(1, 14), (2, 14), (3, 14), (4, 14), (5, 4)]
    assert found(reader, "every", limit=3) == [59, 58, 57]
    nothing = find(reader, "every", Filters(status="failed"), reach=20)
    assert nothing.rows == []
    assert nothing.searched_back_to == BEGAN + timedelta(minutes=28)


def test_two_names_with_one_number_are_told_apart(
    reader: Connection, table: SearchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (filling, search):
        monkeypatch.setattr(module, "term_of", lambda name: len(name.text) % 2)
    by_looking = answers(reader)
    fill(table)
    assert answers(reader) == by_looking
    assert found(reader, "every third parcel") == [57, 51, 45, 39, 33, 27, 21, 15, 9, 3]


def test_what_was_committed_late_is_noted_too(
    owner: Connection, reader: Connection, database: Database, table: SearchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.connect() as late, late.transaction():
        put(late, [100], at=datetime.now(UTC) - timedelta(minutes=52))
        put(owner, [101], at=datetime.now(UTC) - timedelta(minutes=51))
        fill(table)
        assert found(reader, "number 101") == [101]
        assert id_of(101) in noted(owner)
    fill(table)
    assert id_of(100) not in noted(owner)
    monkeypatch.setattr(filling, "LATE", timedelta(0))
    fill(table)
    assert noted(owner)[-2:] == [id_of(100), id_of(101)]
    assert found(reader, "number 100") == [100]
    assert table.fill() is None, "and all that is old is looked at twice and no more"


def test_one_process_fills_at_a_time_and_others_are_not_held_up(
    owner: Connection, database: Database, table: SearchTable
) -> None:
    put(owner, range(COUNT))
    other = SearchTable(database.url_for("opensend_worker"), name="other", timeout_s=patience_s())
    with ThreadPoolExecutor() as pool:
        with owner.transaction():
            owner.execute("LOCK opensend_milter.search_stretches")
            at_it = pool.submit(table.fill)
            database.await_blocked()
            assert other.fill() is None
            in_turn = pool.submit(other.fill, wait=True)
            database.await_blocked(2)
        assert [one.result().looked_at for one in (at_it, in_turn)] == [7, 7]  # type: ignore[union-attr]  # not None
    other.close()
    assert len(noted(owner)) == 14


def test_a_process_killed_in_the_middle_leaves_nothing_out(
    owner: Connection, reader: Connection, database: Database, table: SearchTable
) -> None:
    table.fill()
    with ThreadPoolExecutor() as pool, owner.transaction():
        owner.execute("LOCK opensend_milter.search_stretches")
        killed = pool.submit(table.fill)
        database.await_blocked()
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'opensend-search'"
        )
        with pytest.raises(StoreUnavailable):
            killed.result()
    fill(table)
    assert len(noted(owner)) == COUNT
    assert found(reader, "every", limit=COUNT) == found(reader, "every", limit=COUNT, reach=10**6)


def test_what_is_gone_is_forgotten_and_is_in_nobodys_way_until_then(
    owner: Connection, reader: Connection, table: SearchTable
) -> None:
    fill(table)
    owner.execute("DELETE FROM emails WHERE created_at >= %s", [BEGAN + timedelta(minutes=20)])
    owner.execute("DELETE FROM opensend_milter.submissions WHERE received_at >= %s", [BEGAN + timedelta(minutes=20)])
    assert found(reader, "every", limit=2) == [39, 38]
    await_true(lambda: table.step() and len(noted(owner)) == 40, "what is gone is forgotten")
    assert found(reader, "every", limit=2) == [39, 38]


@pytest.mark.usefixtures("config")
def test_it_is_filled_anew_by_a_command_that_may_be_interrupted(
    owner: Connection, reader: Connection, table: SearchTable
) -> None:
    """What is in the table wrongly is put right; whoever searches meanwhile finds the same."""
    fill(table)
    owner.execute("DELETE FROM opensend_milter.search WHERE email_id = %s", [id_of(1)])
    assert found(reader, "to1@example.net") == []
    table.empty()
    table.fill()
    assert found(reader, "to1@example.net") == [1]
    assert found(reader, "to50@example.net") == [50]
    for asked in (["--anew"], []):
        ended = CliRunner().invoke(app_of(["db"]), ["db", "fill-search", *asked])
        assert ended.exit_code == 0, ended.output
        assert ended.stdout.endswith("all are noted\n")
        assert len(noted(owner)) == COUNT
        assert found(reader, "to1@example.net", reach=1) == [1]


def test_how_far_behind_it_is_can_be_seen(reader: Connection, table: SearchTable) -> None:
    assert table.lag_s() == pytest.approx((datetime.now(UTC) - BEGAN).total_seconds(), abs=patience_s())
    table.fill()
    answer = find(reader, "to50@example.net", reach=10)
    assert (answer.searched_back_to, answer.noted_to) == (BEGAN + timedelta(minutes=28), BEGAN + timedelta(minutes=3))
    assert [one.id for one in find(reader, "to1@example.net", reach=10).rows] == [id_of(1)]
    fill(table)
    assert table.lag_s() == 0
    assert find(reader, "to50@example.net", reach=10).noted_to is None


def test_what_is_younger_than_it_takes_to_commit_waits(
    owner: Connection, reader: Connection, table: SearchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "SETTLED", timedelta(hours=1))
    put(owner, [100], at=datetime.now(UTC) - timedelta(minutes=50))
    fill(table)
    assert len(noted(owner)) == COUNT
    assert found(reader, "number 100") == [100]
