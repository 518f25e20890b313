"""`db init` and `db migrate`, against real clusters."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from opensend_milter.adapters.schema import facts, migrations, roles
from opensend_milter.core.errors import ConfigError, UsageError
from tests.integration.private_postgres import Cluster, Database, program, running_cluster
from tests.integration.serving import serving
from tests.milter_client import Answer
from tests.waiting import await_true

TRY_AGAIN = 451
MAIL = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
_numbers = itertools.count(1)
OURS = [
    "ours/0001_tables", "ours/0002_names", "ours/0003_delivery", "ours/0004_front_door", "ours/0005_rest_rows",
    "ours/0006_odd_spellings", "ours/0008_refusal_refs", "ours/0009_inline_bounces", "ours/0010_letters",
    "ours/0011_search", "ours/0012_console", "ours/0013_console_actions",
    "ours/0014_ownership_and_findings", "ours/0015_refusals_of_a_user",
]  # fmt: skip
ALL = ["opensend/0001_tables", "opensend/0002_deliveries", "opensend/0003_as_opensend", *OURS]
_DROP_ROLE: tuple[LiteralString, ...] = ("DROP OWNED BY {}", "DROP ROLE {}")


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    """An empty database in a cluster that has the roles already; its name."""
    name = f"empty_{next(_numbers)}"
    cluster.new_database(name)
    yield name
    cluster.drop_database(name)


@pytest.fixture
def opensend(cluster: Cluster, empty: str) -> str:
    """A database as OpenSend's own migrations leave it, with a table that we know nothing of."""
    with psycopg.connect(cluster.url(empty), autocommit=True) as connection:
        facts.make(connection)
        connection.execute("CREATE TABLE public.contacts (id uuid PRIMARY KEY)")
    return empty


@pytest.fixture(scope="module")
def _bare() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def bare(_bare: Cluster) -> Iterator[Cluster]:
    """A cluster that has never heard of us, or has been made to forget: a new one takes a second."""
    yield _bare
    databases = rows(_bare.url("postgres"), "SELECT datname FROM pg_database WHERE datname !~ '^(postgres|template.)$'")
    for (database,) in databases:
        _bare.drop_database(str(database))
    for role in rows(_bare.url("postgres"), "SELECT rolname FROM pg_roles WHERE rolname !~ '^(postgres$|pg_)'"):
        _bare.execute(*(sql.SQL(drop).format(sql.Identifier(*map(str, role))) for drop in _DROP_ROLE))


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def at_once(calls: list[Callable[[], list[str]]]) -> list[list[str]]:
    barrier = Barrier(len(calls))

    def started(call: Callable[[], list[str]]) -> list[str]:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(started, calls))


def states(url: str) -> dict[str, str]:
    return {one.name: one.state for one in migrations.status(url)}


EVERYTHING = [*ALL, "rights"]


def test_init_twice(cluster: Cluster, empty: str) -> None:
    url = cluster.url(empty)
    assert states(url) == dict.fromkeys(EVERYTHING, "pending")
    assert migrations.init(url, None) == ALL
    first = cluster.dump_schema(empty)
    assert migrations.init(url, None) == []
    assert migrations.migrate(url, None) == []
    assert cluster.dump_schema(empty).splitlines()[10:-10] == first.splitlines()[10:-10]
    assert states(url) == dict.fromkeys(EVERYTHING, "applied")


def test_rights_of_another_version_are_pending_until_they_are_given(cluster: Cluster, empty: str) -> None:
    """A program that is started meanwhile would be denied what it needs."""
    url = cluster.url(empty)
    migrations.init(url, None)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE opensend_milter.rights SET sha256 = 'of another version'")
    assert states(url) == dict.fromkeys(ALL, "applied") | {"rights": "pending"}
    assert migrations.warning(url) == "", "they can be given back"
    assert migrations.init(url, None) == []
    assert states(url) == dict.fromkeys(EVERYTHING, "applied")


def test_whoever_migrates_a_database_in_use_is_told_that_there_is_no_way_back(cluster: Cluster, empty: str) -> None:
    url = cluster.url(empty)
    assert migrations.warning(url) == "", "nothing is there that could be lost"
    migrations.init(url, None)
    assert migrations.warning(url) == ""
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM opensend_milter.migrations WHERE name = %s", [ALL[-1]])
    assert migrations.warning(url).splitlines() == [f"+ migration {ALL[-1]}", migrations.NO_WAY_BACK]


def test_init_refuses_tables_it_did_not_make(cluster: Cluster, opensend: str) -> None:
    with pytest.raises(UsageError, match=r"api_keys, domains.*use `db migrate`"):
        migrations.init(cluster.url(opensend), None)
    assert rows(cluster.url(opensend), "SELECT to_regnamespace('opensend_milter')") == [(None,)]


def test_migrate_refuses_where_there_is_no_opensend(cluster: Cluster, empty: str) -> None:
    with psycopg.connect(cluster.url(empty)) as connection:
        connection.execute("CREATE TABLE public.emails (id uuid); CREATE TABLE public.domains (id uuid)")
    with pytest.raises(UsageError, match="schema public has no table api_keys, email_events, email_supp"):
        migrations.migrate(cluster.url(empty), None)
    assert rows(cluster.url(empty), "SELECT to_regnamespace('opensend_milter')") == [(None,)]


def test_migrate_alters_nothing_of_opensends(cluster: Cluster, opensend: str) -> None:
    def public() -> list[str]:
        dump = cluster.dump_schema(opensend, "--schema=public", "--no-privileges").splitlines()
        return [line for line in dump if "restrict" not in line]

    def public_rights_of_others() -> list[tuple[object, ...]]:
        return rows(
            url,
            "SELECT c.relname, a.grantee::regrole::text, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a"
            " WHERE c.relnamespace = 'public'::regnamespace AND a.grantee::regrole::text NOT LIKE 'opensend%'"
            " UNION ALL SELECT n.nspname, a.grantee::regrole::text, a.privilege_type"
            " FROM pg_namespace n, aclexplode(n.nspacl) a"
            " WHERE n.nspname = 'public' AND a.grantee::regrole::text NOT LIKE 'opensend%' ORDER BY 1, 2, 3",
        )

    url = cluster.url(opensend)
    cluster_owner = {("postgres",)}
    with psycopg.connect(url) as connection:
        connection.execute("GRANT SELECT ON public.emails TO PUBLIC")
    before, rights = public(), public_rights_of_others()
    assert states(url) == dict.fromkeys([*OURS, "rights"], "pending")
    assert migrations.migrate(url, None) == OURS
    assert migrations.migrate(url, None) == []
    assert states(url) == dict.fromkeys([*OURS, "rights"], "applied")
    assert public() == before
    # GRANT writes the owner's own rights down, which were there before unwritten.
    assert {row for row in public_rights_of_others() if (row[1],) not in cluster_owner} == {
        row for row in rights if (row[1],) not in cluster_owner
    }
    with pytest.raises(UsageError, match="use `db migrate`"):
        migrations.init(url, None)


def test_changed_file_is_named(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("UPDATE opensend_milter.migrations SET sha256 = 'x' WHERE name = 'ours/0001_tables'")
    assert states(database.url) == {**dict.fromkeys(EVERYTHING, "applied"), "ours/0001_tables": "changed"}
    for command in (migrations.init, migrations.migrate):
        with pytest.raises(UsageError, match=r"^ours/0001_tables\.sql is not the file that was applied on 2"):
            command(database.url, None)


def test_older_program_says_upgrade(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("INSERT INTO opensend_milter.migrations (name, sha256) VALUES ('ours/9999_later', 'x')")
    assert states(database.url)["ours/9999_later"] == "unknown"
    for command in (migrations.init, migrations.migrate):
        with pytest.raises(UsageError, match="has ours/9999_later, which this program does not know: upgrade"):
            command(database.url, None)


def test_failed_migration_leaves_nothing_and_is_taken_up_again(cluster: Cluster, empty: str) -> None:
    url = cluster.url(empty)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA opensend_milter; CREATE TABLE opensend_milter.refusals (id int)")
    with pytest.raises(UsageError, match='relation "refusals" already exists'):
        migrations.init(url, None)
    assert rows(url, "SELECT to_regclass('opensend_milter.submissions')") == [(None,)]
    assert states(url) == {**dict.fromkeys([*OURS, "rights"], "pending"), **dict.fromkeys(ALL[: -len(OURS)], "applied")}
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE opensend_milter.refusals")
    assert migrations.init(url, None) == OURS


SCHEMA = resources.files("opensend_milter.adapters").joinpath("schema")
BEFORE = ["opensend/0001_tables", "opensend/0002_deliveries", *OURS[:4]]
"""What an earlier version had."""
SINCE = [name for name in ALL if name not in BEFORE]
CUT = '{"mail_from": "app@example.org", "recipients": ["to@example.n'
LOGGED = ['{"id": "1"}', CUT, "plain words", '"\\ud83d"', '{"a": "\\u0000"}', "", None, "[1, 2]", "NaN", "\ufffd"]


def make_older(url: str) -> None:
    """Make the tables of the version before, as its `db init` left them."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA opensend_milter")
        connection.execute(
            "CREATE TABLE opensend_milter.migrations ("
            "name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for name in BEFORE:
            content = SCHEMA.joinpath(f"{name}.sql").read_bytes()
            connection.execute(content)
            connection.execute(
                "INSERT INTO opensend_milter.migrations VALUES (%s, %s)", [name, hashlib.sha256(content).hexdigest()]
            )


def test_the_logs_of_an_older_version_are_kept_whatever_they_say(cluster: Cluster, empty: str) -> None:
    """They were text, cut at 1,000 characters: what is no JSON stays as a string."""
    url = cluster.url(empty)
    make_older(url)
    with psycopg.connect(url, autocommit=True) as connection:
        for text in LOGGED:
            connection.execute(
                "INSERT INTO logs (endpoint, method, status, request_body, response_body)"
                " VALUES ('smtp', 'SMTP', 200, %s, %s)",
                [text, text],
            )
        connection.execute("""INSERT INTO "user" (id, name, email, created_at) VALUES ('u', 'u', 'u', '2026-01-01Z')""")
    assert migrations.init(url, None) == SINCE
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT request_body, response_body FROM logs ORDER BY ctid").fetchall()
        ((made_at,),) = connection.execute('SELECT created_at FROM "user"')
    assert [request for request, _ in found] == [response for _, response in found]
    assert [request for request, _ in found] == [{"id": "1"}, *LOGGED[1:7], [1, 2], *LOGGED[8:]]
    assert made_at == datetime(2026, 1, 1)  # noqa: DTZ001  # OpenSend's column has no zone; it means UTC


@pytest.fixture
def older(cluster: Cluster, empty: str, _template: Path) -> Database:
    """A database of the version before, in a cluster whose roles have their passwords."""
    make_older(cluster.url(empty))
    return Database(empty, cluster, _template)


@pytest.mark.case(63)
def test_a_migration_while_mail_flows_puts_off_at_worst(older: Database) -> None:
    """The new program over the old tables, then over the new ones: a 250 has its row, and nothing is refused."""
    url, password_dir = older.url, older.password_dir
    answers: list[Answer] = []
    done = Event()

    with serving(url, password_dir) as served:
        account = served.account()

        def send() -> None:
            while not done.is_set():
                answers.append(account.send(MAIL))

        threads = [Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            await_true(lambda: len(answers) > 20, "mail over the old tables")
            assert migrations.init(url, password_dir) == SINCE
            for _ in range(3):
                migrations.init(url, password_dir)
            await_true(lambda: Answer("d") in answers[-4:], "mail over the new tables")
        finally:
            done.set()
            for thread in threads:
                thread.join()
        taken = answers.count(Answer("d"))
        assert {answer.code for answer in answers if answer != Answer("d")} <= {TRY_AGAIN}
        assert served.counts() == (taken, taken, taken)


@contextmanager
def in_use(url: str) -> Iterator[psycopg.Connection]:
    """Have a transaction that has read a table, and does not end."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT FROM opensend_milter.submissions")
        yield connection


def test_a_migration_that_waits_for_a_table_lets_mail_flow(older: Database) -> None:
    """A dump or a forgotten session holds a table: who comes after the migration waits behind it, and not for long."""
    said: list[str] = []
    with in_use(older.url) as reader, ThreadPoolExecutor(1) as pool:
        migrating = pool.submit(partial(migrations.init, older.url, None, say=said.append))
        await_true(lambda: any("waits for a transaction" in line for line in said), "it has waited, and made room")
        with psycopg.connect(older.url) as writer:
            writer.execute("LOCK TABLE opensend_milter.submissions IN ROW EXCLUSIVE MODE")
        assert not migrating.done()
        reader.rollback()
        assert migrating.result() == SINCE


def test_a_table_that_stays_in_use_is_said_and_nothing_is_half_done(
    older: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "TRIES", 2)
    monkeypatch.setattr(migrations, "PAUSE_S", 0.0)
    with in_use(older.url), pytest.raises(UsageError, match="0010_letters: a transaction goes on using a table"):
        migrations.init(older.url, None)
    pending = [one.name for one in migrations.status(older.url) if one.state == "pending"]
    after = ALL[ALL.index("ours/0010_letters") + 1 :]
    assert pending == ["ours/0010_letters", *after, migrations.RIGHTS]
    assert migrations.init(older.url, None) == ["ours/0010_letters", *after]


def test_runners_on_one_database_wait_for_each_other(cluster: Cluster, empty: str) -> None:
    applied = at_once([lambda: migrations.init(cluster.url(empty), None)] * 4)
    assert sorted(applied) == [[], [], [], ALL]


@pytest.mark.parametrize("_round", range(2))
def test_runners_on_databases_of_one_cluster(bare: Cluster, tmp_path: Path, _round: int) -> None:
    """Roles belong to the cluster, the lock to one database."""
    urls = [bare.new_database(f"site_{number}") for number in range(6)]
    applied = at_once([lambda url=url: migrations.init(url, tmp_path / "passwords") for url in urls])  # type: ignore[misc]
    assert applied == [ALL] * 6
    password = (tmp_path / "passwords" / "opensend_worker").read_text().strip()
    for number in range(6):
        assert rows(bare.url(f"site_{number}", "opensend_worker", password), "SELECT 1") == [(1,)]


def test_new_roles_may_nothing_and_have_no_password(bare: Cluster) -> None:
    migrations.init(bare.new_database("site"), None)
    found = rows(
        bare.url("site"),
        "SELECT rolname, rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR rolinherit OR rolreplication"
        " OR rolbypassrls, rolpassword, rolconnlimit FROM pg_authid WHERE rolname LIKE 'opensend%' ORDER BY 1",
    )
    limits = roles.CONNECTION_LIMITS
    assert found == [
        ("opensend_body_reader", True, False, None, limits["opensend_body_reader"]),
        ("opensend_console", True, False, None, limits["opensend_console"]),
        ("opensend_console_actor", True, False, None, limits["opensend_console_actor"]),
        ("opensend_dovecot_auth", True, False, None, limits["opensend_dovecot_auth"]),
        ("opensend_http", True, False, None, limits["opensend_http"]),
        ("opensend_key_reader", False, False, None, -1),
        ("opensend_milter", True, False, None, limits["opensend_milter"]),
        ("opensend_reader", True, False, None, limits["opensend_reader"]),
        ("opensend_worker", True, False, None, limits["opensend_worker"]),
    ]


def test_passwords(bare: Cluster, tmp_path: Path) -> None:
    """One file per role, kept at the next run, made anew when it is gone and asked for; the server never sees one."""
    url = bare.new_database("site")
    directory = tmp_path / "deep" / "passwords"
    migrations.init(url, directory)
    before = {path.name: path.read_text().strip() for path in directory.iterdir()}
    assert sorted(before) == sorted(roles.LOGIN_ROLES)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}

    (directory / "opensend_http").unlink()
    migrations.init(url, directory, new_passwords=True)
    after = {path.name: path.read_text().strip() for path in directory.iterdir()}
    assert {name for name, password in after.items() if before[name] != password} == {"opensend_http"}
    for role, password in after.items():
        assert rows(bare.url("site", role, password), "SELECT current_user::text") == [(role,)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        rows(bare.url("site", "opensend_http", before["opensend_http"]), "SELECT 1")

    log = (bare.directory / "log").read_text()
    assert "ALTER ROLE" in log
    assert not [password for password in [*before.values(), *after.values()] if password in log]

    (directory / "opensend_http").write_text("\n")
    with pytest.raises(ConfigError, match="opensend_http is empty"):
        migrations.init(url, directory)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("CREATE ROLE opensend_worker LOGIN SUPERUSER", "role opensend_worker exists and has SUPERUSER"),
        ("CREATE ROLE opensend_milter LOGIN CREATEROLE", "role opensend_milter exists and has SUPERUSER, CREATEROLE"),
        ("CREATE ROLE opensend_key_reader LOGIN", "role opensend_key_reader exists and may log in"),
    ],
)
def test_roles_that_may_too_much_are_refused(bare: Cluster, statement: str, complaint: str) -> None:
    bare.execute(sql.SQL(statement))
    url = bare.new_database("site")
    with pytest.raises(UsageError, match=complaint):
        migrations.init(url, None)
    assert rows(url, "SELECT to_regnamespace('opensend_milter')") == [(None,)]


@pytest.mark.parametrize("sees_passwords", [True, False])
def test_a_second_host_does_not_lock_out_the_first(bare: Cluster, tmp_path: Path, *, sees_passwords: bool) -> None:
    """Nothing is changed, no file written; with a copy of the passwords, or on purpose, it goes on."""
    bare.execute(sql.SQL("CREATE ROLE cloud LOGIN CREATEROLE PASSWORD 'x'"))
    bare.new_database("site", owner="cloud")
    url = bare.url("site") if sees_passwords else bare.url("site", "cloud", "x")
    first, second = tmp_path / "first", tmp_path / "second"
    migrations.init(url, first)
    (first / "opensend_http").rename(tmp_path / "aside")
    for command in (migrations.init, migrations.migrate):
        with pytest.raises(UsageError, match=r"opensend_http: the password is not in .*copy that directory"):
            command(url, first)
        with pytest.raises(UsageError, match=", ".join(roles.OF_PROCESSES) + ":"):
            command(url, second)
    assert not second.exists()
    (tmp_path / "aside").rename(first / "opensend_http")
    password = (first / "opensend_http").read_text().strip()
    assert rows(bare.url("site", "opensend_http", password), "SELECT 1") == [(1,)]

    shutil.copytree(first, second)
    migrations.init(url, second)
    assert rows(bare.url("site", "opensend_http", password), "SELECT 1") == [(1,)]
    migrations.init(url, tmp_path / "third", new_passwords=True)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        rows(bare.url("site", "opensend_http", password), "SELECT 1")


@pytest.mark.parametrize("sees_passwords", [True, False])
def test_a_second_host_does_without_the_roles_for_people(
    bare: Cluster, tmp_path: Path, *, sees_passwords: bool
) -> None:
    """One that had its passwords before there were these roles is upgraded all the same; on purpose it has its own."""
    bare.execute(sql.SQL("CREATE ROLE cloud LOGIN CREATEROLE PASSWORD 'x'"))
    bare.new_database("site", owner="cloud")
    url = bare.url("site") if sees_passwords else bare.url("site", "cloud", "x")
    first, second = tmp_path / "first", tmp_path / "second"
    migrations.init(url, first)
    password = (first / "opensend_reader").read_text().strip()
    shutil.copytree(first, second, ignore=lambda *_: roles.FOR_PEOPLE)
    migrations.init(url, second)
    assert sorted(path.name for path in second.iterdir()) == sorted(roles.OF_PROCESSES)
    assert rows(bare.url("site", "opensend_reader", password), "SELECT 1") == [(1,)]
    migrations.init(url, second, new_passwords=True)
    assert sorted(path.name for path in second.iterdir()) == sorted(roles.LOGIN_ROLES)


def test_roles_that_have_no_password_yet_are_given_one(bare: Cluster, tmp_path: Path) -> None:
    """Who may see that there is none is not asked for a copy."""
    url = bare.new_database("site")
    migrations.init(url, None)
    migrations.init(url, tmp_path / "passwords")
    assert sorted(path.name for path in (tmp_path / "passwords").iterdir()) == sorted(roles.LOGIN_ROLES)


def test_managed_postgres(bare: Cluster, tmp_path: Path) -> None:
    """The administrator of a managed server is no superuser, but may make roles and owns the database."""
    bare.execute(sql.SQL("CREATE ROLE cloud LOGIN CREATEROLE CREATEDB PASSWORD 'x'"))
    bare.new_database("site", owner="cloud")
    url = bare.url("site", "cloud", "x")
    assert migrations.init(url, tmp_path) == ALL
    assert migrations.init(url, tmp_path) == []
    assert rows(url, "SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'key_id'") == [
        ("opensend_key_reader",)
    ]
    assert rows(url, "SELECT has_schema_privilege('opensend_key_reader', 'opensend_milter', 'CREATE')") == [(False,)]
    assert rows(url, "SELECT has_database_privilege('public', 'site', 'TEMPORARY')") == [(False,)]
    dovecot = bare.url("site", "opensend_dovecot_auth", (tmp_path / "opensend_dovecot_auth").read_text().strip())
    assert rows(dovecot, "SELECT opensend_milter.key_id('x')") == [(None,)]


def test_restored_backup_gets_its_roles_back(database: Database, bare: Cluster, tmp_path: Path) -> None:
    """A dump names roles that a new cluster does not have: psql complains and goes on, `db init` mends."""
    with database.connect() as connection:
        connection.execute("INSERT INTO public.api_keys (name, token_hash, user_id) VALUES ('a', 'known', 'u')")
    url = bare.new_database("restored")
    dump = subprocess.run([program("pg_dump"), f"--dbname={database.url}"], check=True, capture_output=True).stdout
    restored = subprocess.run([program("psql"), "-q", url], input=dump, check=True, capture_output=True)
    assert b'role "opensend_worker" does not exist' in restored.stderr
    assert migrations.init(url, tmp_path) == []
    dovecot = bare.url("restored", "opensend_dovecot_auth", (tmp_path / "opensend_dovecot_auth").read_text().strip())
    assert rows(dovecot, "SELECT opensend_milter.key_id('known') IS NOT NULL") == [(True,)]
    assert rows(url, "SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'key_id'") == [
        ("opensend_key_reader",)
    ]


def test_who_may_not_grant_on_opensends_tables_is_told(bare: Cluster) -> None:
    bare.execute(sql.SQL("CREATE ROLE cloud LOGIN CREATEROLE PASSWORD 'x'"))
    bare.new_database("site", owner="cloud")
    with psycopg.connect(bare.url("site"), autocommit=True) as connection:
        facts.make(connection)
    url = bare.url("site", "cloud", "x")
    with pytest.raises(UsageError, match='permission denied for column "id" of relation "api_keys"; connect as'):
        migrations.migrate(url, None)
    with psycopg.connect(bare.url("site")) as connection:
        connection.execute("GRANT SELECT ON public.api_keys TO cloud WITH GRANT OPTION")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO cloud WITH GRANT OPTION")
    with pytest.raises(UsageError, match=r"privileges were granted for .*; connect as the owner of OpenSend.s"):
        migrations.migrate(url, None)


def test_other_encodings_are_refused(cluster: Cluster, empty: str) -> None:
    cluster.drop_database(empty)
    cluster.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'").format(sql.Identifier(empty))
    )
    with pytest.raises(UsageError, match="encoding is SQL_ASCII"):
        migrations.init(cluster.url(empty), None)


def test_hardened_database_lets_only_our_roles_in(cluster: Cluster, empty: str, database: Database) -> None:
    cluster.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(empty)))
    migrations.init(cluster.url(empty), None)
    for role in roles.LOGIN_ROLES:
        password = (database.password_dir / role).read_text().strip()
        assert rows(cluster.url(empty, role, password), "SELECT 1") == [(1,)]
