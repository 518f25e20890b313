"""`make bench-lookup`: how long it takes to find a message among a million, by each thing that one may know of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median

from bench.compare import about_machine, write
from bench.figures import percentile
from opensend_milter.adapters.postgres.link import Connection, connect
from opensend_milter.adapters.postgres.lookup import filling
from opensend_milter.adapters.postgres.lookup.filling import STRETCH, SearchTable
from opensend_milter.adapters.postgres.lookup.search import find
from opensend_milter.adapters.schema import migrations
from opensend_milter.core.lookup import EVERYTHING, Scope
from opensend_milter.core.model import UserId
from opensend_milter.core.terms import TERM_BITS, Name, term_of
from tests.integration import private_postgres
from tests.integration.private_postgres import Database, running_cluster

USERS = 1_000
SELDOM = 9_000
"""Messages that have a word which not many have."""
LEFT = 1_000
"""Messages that the worker's own code notes, the oldest; by what only they are known is looked for."""
NEWEST = 10_000
"""So many more, the newest, by which is seen how fast it notes."""
MUST_MS, COMMON_MS = 50.0, 200.0
_SETTINGS = {"shared_buffers": "4GB", "maintenance_work_mem": "1GB", "max_wal_size": "8GB", "log_statement": "none"}
_EMAILS = """
    INSERT INTO emails (id, "from", "to", subject, text, status, user_id, created_at)
    SELECT (lpad(to_hex(n), 8, '0') || '-0000-4000-8000-' || substr(md5(n::text), 1, 12))::uuid,
        'App <app@shop.example>', jsonb_build_array('to' || n || '@d' || mod(n, %(users)s) || '.example'),
        'Your parcel ' || n || CASE mod(n, 2) WHEN 0 THEN ' express' ELSE '' END
            || CASE mod(n, %(rows)s / %(seldom)s) WHEN 0 THEN ' fragile' ELSE '' END,
        '', 'sent', 'user-' || mod(n, %(users)s), %(now)s::timestamptz - (%(rows)s - n) * interval '1 second'
    FROM generate_series(1, %(rows)s) n"""
_SUBMISSIONS = """
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
        client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
    SELECT id, created_at, user_id, md5(user_id)::uuid, 'smtp', 'q' || split_part(subject, ' ', 3), '192.0.2.7', '',
        'app@shop.example', 'app@shop.example', ARRAY["to" ->> 0],
        '<m' || split_part(subject, ' ', 3) || '@shop.example>', 2048, ''
    FROM emails"""
_STRETCHES = """
    INSERT INTO opensend_milter.search_stretches (number, began_at, messages)
    SELECT g + 1, %(now)s::timestamptz - (%(rows)s - g * %(stretch)s - 1) * interval '1 second', %(stretch)s
    FROM generate_series(1, (%(rows)s - 1) / %(stretch)s) g"""
# What only one message has is a number of chance here: hashes are not Postgres's.
_NOTED = """
    INSERT INTO opensend_milter.search (email_id, created_at, terms)
    SELECT id, created_at, ARRAY(SELECT g.number << 44 | term FROM unnest(
        %(all)s::bigint[] || (%(of_users)s::bigint[])[mod(n, %(users)s) + 1]
        || (%(domains)s::bigint[])[mod(n, %(users)s) + 1]
        || CASE mod(n, 2) WHEN 0 THEN %(half)s ELSE n END::bigint
        || CASE mod(n, %(rows)s / %(seldom)s) WHEN 0 THEN %(few)s ELSE n END::bigint
        || ARRAY(SELECT (random() * 2 ^ %(bits)s)::bigint FROM generate_series(1, 4 + 0 * n))) AS t (term))
    FROM (SELECT id, created_at, split_part(subject, ' ', 3)::integer AS n FROM emails) e
        CROSS JOIN LATERAL (SELECT ((e.n - 1) / %(stretch)s + 1)::bigint AS number) g
    WHERE n <= %(rows)s - %(newest)s AND n > %(left)s"""
_PROGRESS = """
    UPDATE opensend_milter.search_progress SET (noted_at, noted_id) = (
        SELECT created_at, id FROM emails WHERE created_at <= %(now)s::timestamptz - %(newest)s * interval '1 second'
        ORDER BY created_at DESC LIMIT 1)"""
_INDEXES = ("emails", "opensend_milter.submissions", "opensend_milter.search")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing by which messages were looked for."""

    what: str
    found: int
    p50_ms: float
    p99_ms: float
    goal_ms: float

    @property
    def is_met(self) -> bool:
        return self.p99_ms <= self.goal_ms

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return (
            f"| {self.what} | {self.found} | {self.p50_ms:.1f} | {self.p99_ms:.1f} | {self.goal_ms:.0f} | {verdict} |"
        )


@contextmanager
def new_database() -> Iterator[Database]:
    private_postgres.SETTINGS.update(_SETTINGS)
    with running_cluster() as cluster, tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as place:
        migrations.init(cluster.new_database("bench"), Path(place))
        yield Database("bench", cluster, Path(place))


def fill(database: Database, rows: int) -> Mapping[str, float]:
    """Fill the tables, nearly all of it by the server alone; return what the worker's part and the table came to."""
    values: dict[str, object] = {
        "rows": rows,
        "now": datetime.now(UTC) - timedelta(minutes=1),
        "users": USERS,
        "seldom": SELDOM,
        "stretch": STRETCH,
        "newest": NEWEST,
        "left": LEFT,
        "bits": TERM_BITS,
        "all": [
            term_of(Name("address", "app@shop.example")),
            term_of(Name("domain", "shop.example")),
            *(term_of(Name("word", word)) for word in ("your", "parcel")),
        ],
        "of_users": [term_of(Name("user", f"user-{number}")) for number in range(USERS)],
        "domains": [term_of(Name("domain", f"d{number}.example")) for number in range(USERS)],
        "half": term_of(Name("word", "express")),
        "few": term_of(Name("word", "fragile")),
    }
    with database.connect() as connection:
        connection.execute(
            "UPDATE pg_index SET indisready = false WHERE indrelid = ANY (%s::regclass[])", [[*_INDEXES]]
        )
        for what, statement in (("emails", _EMAILS), ("submissions", _SUBMISSIONS)):
            took(what, partial(connection.execute, statement, values))
        connection.execute(_STRETCHES, values)
        took("search", lambda: connection.execute(_NOTED, values))
        connection.execute("UPDATE pg_index SET indisready = true WHERE indrelid = ANY (%s::regclass[])", [[*_INDEXES]])
        for table in _INDEXES:
            took(f"indexes of {table}", partial(connection.execute, f"REINDEX TABLE {table}".encode()))
        connection.execute(_PROGRESS, values)
        took("vacuum", lambda: connection.execute("VACUUM ANALYZE"))
        size = "SELECT pg_total_relation_size('opensend_milter.search')"
        ((octets,),) = connection.execute(size)
    return {"noted_per_s": NEWEST / noted_s(database), "octets_a_message": octets / rows}


def noted_s(database: Database) -> float:
    """Let the worker's code note what is left; return how long the newest took."""
    # The oldest are noted as what came late is: no need to wait for it.
    filling.LATE = timedelta(0)
    table = SearchTable(database.url_for("opensend_worker"), name="bench", timeout_s=3_600)
    began = time.perf_counter()
    for _ in range(NEWEST // filling.AT_ONCE):
        table.fill()
    seconds = time.perf_counter() - began
    for _ in range(LEFT // filling.AT_ONCE):
        table.fill()
    table.close()
    return seconds


def took(what: str, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)


def questions(connection: Connection, count: int) -> Iterator[tuple[str, list[str], Scope, float]]:
    """Yield what is looked for, by so many different ones of a kind where there are."""
    numbers = [1 + number * LEFT // count for number in range(count)]
    found = connection.execute(
        "SELECT id::text FROM emails WHERE split_part(subject, ' ', 3) = ANY (%s)", [[*map(str, numbers)]]
    )
    ids = [row[0] for row in found]
    user = Scope(user_id=UserId("user-500"))
    yield "a whole id", ids, EVERYTHING, MUST_MS
    yield "its first 13 characters", [one[:13] for one in ids], EVERYTHING, MUST_MS
    yield "its last 12 characters", [one[-12:] for one in ids], EVERYTHING, MUST_MS
    yield "a queue id", [f"q{number}" for number in numbers], EVERYTHING, MUST_MS
    yield "a Message-ID", [f"<m{number}@shop.example>" for number in numbers], EVERYTHING, MUST_MS
    yield "a recipient", [f"to{number}@d{number % USERS}.example" for number in numbers], EVERYTHING, MUST_MS
    yield "a word of one", [f"{number}" for number in numbers], EVERYTHING, MUST_MS
    yield "an address of nobody", [f"nobody{number}@shop.example" for number in numbers], EVERYTHING, MUST_MS
    yield f"a word of {SELDOM:,}", ["fragile"] * count, EVERYTHING, MUST_MS
    yield f"a word of {SELDOM:,} and one of half of all", ["fragile express"] * count, EVERYTHING, MUST_MS
    yield f"a word of {SELDOM:,}, one user's", ["fragile"] * count, user, MUST_MS
    yield "a word of half of all", ["express"] * count, EVERYTHING, COMMON_MS
    yield "a word of all", ["parcel"] * count, EVERYTHING, COMMON_MS
    yield "three words of all", ["your parcel express"] * count, EVERYTHING, COMMON_MS
    yield "a word of all, one user's", ["parcel"] * count, user, COMMON_MS
    yield "a domain of all", ["@shop.example"] * count, EVERYTHING, COMMON_MS


def measure(connection: Connection, what: str, asked: Sequence[str], scope: Scope, goal_ms: float) -> Line:
    """Ask each once to warm up, and again."""
    spent, found = [], 0
    for turn in range(2):
        for one in asked:
            began = time.perf_counter()
            hits = find(connection, one, scope=scope)
            if turn:
                spent.append((time.perf_counter() - began) * 1e3)
            found = len(hits.rows)
    p50_ms, p99_ms = median(spent), percentile(spent, 0.99)
    return Line(what=what, found=found, p50_ms=p50_ms, p99_ms=p99_ms, goal_ms=goal_ms)


def main() -> None:
    """Print the figures and keep them; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="messages; the goal: 10000000")
    parser.add_argument("--count", type=int, default=100, help="how often each is asked")
    arguments = parser.parse_args()
    with new_database() as database:
        filled = fill(database, arguments.rows)
        with connect(database.url_for("opensend_reader"), application_name="bench") as connection:
            print(
                f"\nAmong {arguments.rows:,} messages, in ms:\n"
                "| by | found | p50 | p99 | goal | |\n|---|---|---|---|---|---|"
            )
            lines = []
            for what, asked, scope, goal_ms in questions(connection, arguments.count):
                lines.append(measure(connection, what, asked, scope, goal_ms))
                print(lines[-1], flush=True)
    print(
        f"\nnoted: {filled['noted_per_s']:.0f} messages a second;"
        f" the table: {filled['octets_a_message']:.0f} octets a message"
    )
    made = {"machine": about_machine(), "rows": arguments.rows, **filled, "lines": [asdict(line) for line in lines]}
    write("lookup.json", {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **made})
    sys.exit(not all(line.is_met for line in lines))


if __name__ == "__main__":
    main()
