"""What we need of OpenSend's tables is what our statements name; what differs is told until it is mended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import psycopg
import pytest
from psycopg import pq
from typer.testing import CliRunner

from opensend_milter.adapters.postgres.link import Connection, StatementFile, statements
from opensend_milter.adapters.schema import facts, migrations
from opensend_milter.adapters.schema.facts import Index, Tables
from opensend_milter.adapters.schema.fitting import Fitting, differences
from opensend_milter.adapters.schema.needs import Need, Profile, needs, needs_of_all
from opensend_milter.cli import app_of
from opensend_milter.core.errors import TablesDiffer, UsageError
from tests.integration.private_postgres import Cluster, Database
from tests.integration.serving import Serving, serving
from tests.milter_client import Answer
from tests.waiting import await_true

OPENSEND: tuple[StatementFile, ...] = ("intake", "submissions", "letters", "rates", "jobs", "spellings")
STANDALONE: tuple[StatementFile, ...] = (*OPENSEND, "feedback", "webhooks")
NOT_OF_A_PROCESS = frozenset({"add", "list", "remove", "rotate", "replay", "deliveries"})
"""Of webhooks.sql: commands of a person."""
INCOMING = "CREATE TEMPORARY TABLE incoming (email text, folded text, reason text, since timestamptz)"
"""What an import of suppressed addresses makes for itself."""
FUNCTIONS = {
    "key_id": "SELECT opensend_milter.key_id('x')",
    "letters": "SELECT opensend_milter.letters('x', '{}', true)",
    "may_change": "SELECT opensend_milter.may_change('x', gen_random_uuid())",
}
TRY_AGAIN = 451
MAIL = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    """An empty database; its name."""
    cluster.new_database("nothing_yet")
    yield "nothing_yet"
    cluster.drop_database("nothing_yet")


def texts(names: Sequence[StatementFile], *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the statements of these files as the server sees them."""
    found = {f"{name}.{key}": text for name in names for key, text in statements(name).items() if key not in without}
    return {key: _numbered(text) for key, text in {**found, **FUNCTIONS}.items()}


def _numbered(text: str) -> str:
    order: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${order.setdefault(match[1], len(order) + 1)}"

    return re.sub(r"%\((\w+)\)[sb]", number, text).replace("%%", "%")


def fault(connection: Connection, text: str) -> str:
    """Say why the server does not take a statement, or nothing: it is analysed, and only ours are run."""
    if text in FUNCTIONS.values():
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(text.encode())
        except psycopg.Error as error:
            return str(error)
        return ""
    answer = connection.pgconn.prepare(b"", text.encode())
    if answer.status == pq.ExecStatus.COMMAND_OK:
        return ""
    # What is left open by a statement alone, psycopg says of each value it sends.
    is_open = answer.error_field(pq.DiagnosticField.SQLSTATE) in {b"42P18", b"42P08"}
    return "" if is_open else answer.error_message.decode()


@pytest.fixture
def place(beside: Database) -> str:
    """OpenSend's own tables, with ours beside; the URL."""
    return beside.url


def named(needed: Sequence[Need]) -> set[tuple[str, str]]:
    return {(need.table, column) for need in needed for column in need.columns}


_USED: dict[str, set[tuple[str, str]]] = {}
"""The columns of OpenSend's without which a statement fails: they do not change from test to test."""


def used(url: str, asked: dict[str, str]) -> set[tuple[str, str]]:
    """Return the columns of OpenSend's without which one of these statements fails."""
    new = {key: text for key, text in asked.items() if text not in _USED}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(INCOMING)
        assert {key: why for key, text in new.items() if (why := fault(connection, text))} == {}
        _USED.update({text: set() for text in new.values()})
        for column in facts.opensend().columns if new else ():
            some = [text for text in new.values() if column.name in text or text in FUNCTIONS.values()]
            with connection.transaction(force_rollback=True):
                connection.execute(f'ALTER TABLE public."{column.table}" DROP "{column.name}" CASCADE'.encode())
                for text in some:
                    with connection.transaction(force_rollback=True):
                        if fault(connection, text):
                            _USED[text].add((column.table, column.name))
    return set[tuple[str, str]]().union(*(_USED[text] for text in asked.values()))


@pytest.mark.parametrize(("profile", "files"), [("opensend", OPENSEND), ("standalone", STANDALONE)])
@pytest.mark.parametrize("billing", ["none", "stripe"])
def test_the_needs_of_the_processes_are_what_their_statements_name(
    place: str, profile: Profile, files: tuple[StatementFile, ...], billing: str
) -> None:
    """No column more and none less: a list that somebody forgot to keep fails here."""
    left_out = NOT_OF_A_PROCESS | (frozenset() if profile == "opensend" else {"log"})
    more: tuple[StatementFile, ...] = ("billing",) if billing == "stripe" else ()
    asked = texts((*files, *more), without=left_out)
    assert used(place, asked) == named(needs(profile=profile, billing="stripe" if more else "none"))


def test_the_needs_of_all_are_what_is_granted_and_what_the_commands_name(
    place: str, cluster: Cluster, empty: str
) -> None:
    """A database that has these columns and no other takes our schema, its rights and every statement."""
    asked = texts(get_args(StatementFile), without=frozenset(statements("switching")))
    wanted = needs_of_all(billing=True)
    assert used(place, asked) <= named(wanted)
    with psycopg.connect(cluster.url(empty), autocommit=True) as connection:
        facts.make(connection, no_more_than(wanted))
        migrations.migrate(cluster.url(empty), None)
        connection.execute(INCOMING)
        assert {key: why for key, text in asked.items() if (why := fault(connection, text))} == {}


def no_more_than(needed: Sequence[Need]) -> Tables:
    """Return OpenSend's tables without what we do not need: of the indexes, those that make a row the only one."""
    kept, columns = facts.opensend(), {need.table: need.columns for need in needed}

    def is_whole(index: Index) -> bool:
        of = set(re.findall(r"\w+", index.definition)) - {"btree"}
        return bool(index.uniqueness) and of <= columns.get(index.table, frozenset())

    return Tables(
        columns=tuple(column for column in kept.columns if column.name in columns.get(column.table, frozenset())),
        indexes=tuple(index for index in kept.indexes if is_whole(index)),
        names=frozenset(columns),
    )


# ---------------------------------------------------------------------- what differs

PLANTED = {
    "ALTER TABLE logs ALTER request_body TYPE text": "logs.request_body is text here, jsonb expected",
    "ALTER TABLE emails DROP tags": "emails.tags is missing here, jsonb expected",
    "ALTER TABLE emails ADD shard text NOT NULL": (
        "emails.shard is not null here, and a row of ours says nothing there"
    ),
    "ALTER TABLE emails ALTER document SET NOT NULL": (
        "emails.document is not null here, and a row of ours says nothing there"
    ),
    'ALTER TABLE emails ALTER "from" TYPE varchar(100)': (
        "emails.from is character varying(100) here, character varying(512) expected"
    ),
    "ALTER TABLE email_events ALTER received_at TYPE timestamp": (
        "email_events.received_at is timestamp without time zone here, timestamp with time zone expected"
    ),
    "DROP TABLE logs": "logs: there is no such table",
}
HARMLESS = [
    "ALTER TABLE emails ADD shard text",
    "ALTER TABLE emails ADD shard text NOT NULL DEFAULT ''",
    "ALTER TABLE emails ADD shard integer GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE emails ADD shard integer GENERATED ALWAYS AS (length(subject)) STORED NOT NULL",
    'ALTER TABLE emails ALTER "from" TYPE text',
    "ALTER TABLE emails ALTER status TYPE varchar(99)",
    "ALTER TABLE emails ALTER provider_retry_count TYPE bigint",
    "ALTER TABLE emails DROP thread_id",
    "ALTER TABLE api_keys ADD organization text NOT NULL",
    "ALTER TABLE webhooks DROP url",
    "ALTER TABLE email_events ALTER source_id SET NOT NULL",
    "ALTER TABLE logs ALTER endpoint SET NOT NULL",
    "DROP TABLE templates",
]


@pytest.mark.parametrize(("change", "told"), PLANTED.items())
def test_what_is_not_as_we_need_it_is_named(place: str, change: str, told: str) -> None:
    with psycopg.connect(place, autocommit=True) as connection, connection.transaction(force_rollback=True):
        connection.execute(change.encode())
        assert differences(connection, needs(profile="opensend", billing="none")) == [told]


@pytest.mark.parametrize("change", [*HARMLESS, "SELECT 1"])
def test_what_does_not_stand_in_the_way_of_mail_is_no_difference(place: str, change: str) -> None:
    with psycopg.connect(place, autocommit=True) as connection, connection.transaction(force_rollback=True):
        # Emails refuse no source_id of ours: only the events of suppression are written beside OpenSend.
        connection.execute(change.encode())
        found = differences(connection, needs(profile="opensend", billing="stripe"))
        assert found == ([] if "source_id" not in change else [
            "email_events.source_id is not null here, and a row of ours says nothing there"
        ])  # fmt: skip


def test_what_only_a_command_needs_is_told_to_whoever_asks_for_that(place: str) -> None:
    with psycopg.connect(place, autocommit=True) as connection, connection.transaction(force_rollback=True):
        connection.execute("ALTER TABLE api_keys ADD organization text NOT NULL")
        asked = needs(profile="opensend", billing="none", administration=True)
        assert differences(connection, asked) == [
            "api_keys.organization is not null here, and a row of ours says nothing there"
        ]


def test_migrate_begins_nothing_on_tables_it_would_not_work_with(cluster: Cluster, empty: str) -> None:
    url = cluster.url(empty)
    with psycopg.connect(url, autocommit=True) as connection:
        facts.make(connection)
        connection.execute("ALTER TABLE logs ALTER request_body TYPE text; ALTER TABLE emails DROP tags")
    before = cluster.dump_schema(empty)
    with pytest.raises(UsageError) as raised:
        migrations.migrate(url, None)
    assert "tables: emails.tags is missing here, jsonb expected" in str(raised.value)
    assert "tables: logs.request_body is text here, jsonb expected" in str(raised.value)
    assert cluster.dump_schema(empty).splitlines()[10:-10] == before.splitlines()[10:-10]


# ---------------------------------------------------------------------- the watch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_watch_looks_every_ten_seconds_or_when_in_doubt(place: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watch = Fitting(needs(profile="opensend", billing="none"), now=clock)
    with psycopg.connect(place, autocommit=True) as connection:
        watch.check(connection)
        with connection.transaction(force_rollback=True):
            connection.execute("ALTER TABLE emails DROP tags")
            watch.check(connection)
            clock.now += 10
            for _ in range(3):
                with pytest.raises(TablesDiffer, match=r"emails\.tags is missing here"):
                    watch.check(connection)
        with pytest.raises(TablesDiffer):
            watch.check(connection)
        watch.doubt()
        watch.check(connection)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("fitting")]
    assert told.count("tables: emails.tags is missing here, jsonb expected") == 1


def test_a_database_that_is_away_is_no_mismatch(place: str) -> None:
    watch = Fitting(needs(profile="opensend", billing="none"), every_s=0)
    with psycopg.connect(place, autocommit=True) as connection:
        watch.check(connection)
        connection.close()
        with pytest.raises(psycopg.OperationalError):
            watch.check(connection)
    with psycopg.connect(place, autocommit=True) as connection:
        watch.check(connection)


# ---------------------------------------------------------------------- a running system


@pytest.fixture
def served(beside: Database) -> Iterator[Serving]:
    with serving(beside.url, beside.password_dir, profile="opensend") as running:
        yield running


BREAKS = {
    "ALTER TABLE logs ALTER request_body TYPE text": "ALTER TABLE logs ALTER request_body TYPE jsonb USING '{}'",
    "ALTER TABLE emails RENAME tags TO labels": "ALTER TABLE emails RENAME labels TO tags",
    "ALTER TABLE emails ADD shard text; UPDATE emails SET shard = ''; ALTER TABLE emails ALTER shard SET NOT NULL": (
        "ALTER TABLE emails DROP shard"
    ),
}


@pytest.mark.case(71)
@pytest.mark.altered_tables
@pytest.mark.parametrize(("breaks", "mends"), BREAKS.items())
def test_tables_that_change_while_mail_flows_put_it_off_until_they_are_mended(
    served: Serving, breaks: str, mends: str
) -> None:
    account = served.account()
    assert account.send(MAIL) == Answer("d")
    served.rows(breaks)
    await_true(lambda: account.send(MAIL) != Answer("d") and "tables: " in served.log, "a line that names what differs")
    table, column = re.search(r"TABLE (\w+) (?:ALTER|RENAME|ADD) (\w+)", breaks).groups()  # type: ignore[union-attr]  # written above
    assert f"tables: {table}.{column} is " in served.log
    served.rows(mends)
    await_true(lambda: account.send(MAIL) == Answer("d"), "mail flows again")
    again = "tables: as expected again"
    await_true(lambda: account.send(MAIL) == Answer("d") and again in served.log, "a word that all is well")
    assert served.process.poll() is None


@pytest.mark.altered_tables
def test_serve_begins_on_tables_that_differ_and_says_so(beside: Database) -> None:
    with beside.connect() as connection:
        connection.execute("ALTER TABLE logs ALTER response_body TYPE text")
        with serving(beside.url, beside.password_dir, profile="opensend") as running:
            assert "tables: logs.response_body is text here, jsonb expected" in running.log
            account = running.account()
            assert account.send(MAIL).code == TRY_AGAIN
            connection.execute("ALTER TABLE logs ALTER response_body TYPE jsonb USING '{}'")
            await_true(lambda: account.send(MAIL) == Answer("d"), "mail flows without a restart")


@pytest.mark.altered_tables
def test_check_config_names_what_differs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("profile: opensend\nsmtp: {host: 127.0.0.1, plaintext_auth: true}\n")
    monkeypatch.setenv("DATABASE_URL", place)
    good = CliRunner().invoke(app_of(["check-config"]), ["check-config", "--database", "--json", "--config", str(path)])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["tables"] == {"fit": True, "differences": []}
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute("ALTER TABLE emails RENAME tags TO labels")
        try:
            bad = CliRunner().invoke(app_of(["check-config"]), ["check-config", "--database", "--config", str(path)])
            unasked = CliRunner().invoke(app_of(["check-config"]), ["check-config", "--config", str(path)])
        finally:
            connection.execute("ALTER TABLE emails RENAME labels TO tags")
    assert bad.exit_code == 78
    assert "opensend-milter: tables: emails.tags is missing here, jsonb expected" in bad.stderr
    assert unasked.exit_code == 0
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    away = CliRunner().invoke(app_of(["check-config"]), ["check-config", "--database", "--config", str(path)])
    assert away.exit_code == 69
