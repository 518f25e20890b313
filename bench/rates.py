"""What rate limits cost: a decision by itself, what reaches the database, and taking messages in with and without."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from opensend_milter.adapters.postgres.rates import PostgresLeases
from opensend_milter.adapters.schema import migrations
from opensend_milter.app.lanes import open_lanes
from opensend_milter.config import load
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import Address, KeyId, Message
from opensend_milter.core.rates import Ask, Grant, RateLimits
from opensend_milter.servers.throttle import Throttle
from tests.integration import private_postgres
from tests.integration.private_postgres import Database, running_cluster
from tests.unit.messages import message

CLIENT = "192.0.2.7"
GENEROUS = RateLimits(
    total_per_minute=10_000_000, client_per_minute=10_000_000, key_per_minute=10_000_000, failed_per_minute=60
)
DEFAULT = RateLimits(total_per_minute=0, client_per_minute=60_000, key_per_minute=60_000, failed_per_minute=60)
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "log_statement": "none"}


class CountedLeases(PostgresLeases):
    """Counts the round trips."""

    count = 0

    def lease(self, asks: Sequence[Ask]) -> list[Grant]:
        self.count += 1
        return super().lease(asks)


@contextmanager
def throttled(database: Database, limits: RateLimits) -> Iterator[tuple[Throttle, CountedLeases]]:
    leases = CountedLeases(database.url_for("opensend_milter"), name="bench-rates", timeout_s=5)
    throttle = Throttle(leases, limits, timeout_s=5)
    throttle.start()
    try:
        yield throttle, leases
    finally:
        throttle.stop()


def decisions(database: Database, key: KeyId, count: int) -> dict[str, float]:
    """Ask for one message after the other, of three limits, as fast as one thread can."""
    with throttled(database, GENEROUS) as (throttle, leases):
        for _ in range(10_000):
            throttle.check(CLIENT, key)
        leases.count, held, held_s = 0, 0, 0.0
        began = time.perf_counter()
        for _ in range(count):
            at = time.perf_counter()
            if throttle.check_at_once(CLIENT, key):
                held, held_s = held + 1, held_s + time.perf_counter() - at
            else:
                throttle.check(CLIENT, key)
        seconds = time.perf_counter() - began
    return {
        "held_us_per_message": round(held_s / held * 1e6, 2),
        "us_per_message_leases_included": round(seconds / count * 1e6, 2),
        "leases_per_1000_messages": round(leases.count / count * 1_000, 3),
    }


def paced(database: Database, key: KeyId, per_s: int, count: int) -> dict[str, float]:
    """Ask at a steady pace, under the limits as they are when nothing is configured."""
    with throttled(database, DEFAULT) as (throttle, leases):
        began = time.perf_counter()
        refused = 0
        for number in range(count):
            time.sleep(max(began + number / per_s - time.perf_counter(), 0))
            refused += not throttle.check(CLIENT, key).allowed
    return {"messages_per_s": per_s, "leases_per_1000_messages": leases.count / count * 1_000, "refused": refused}


def accepting(accept: Callable[[Message], object], key: KeyId, sessions: int, count: int) -> float:
    """Take messages in from so many sessions at once; return microseconds per message."""

    def session(_: int) -> None:
        for _ in range(count // sessions):
            made = message()
            made = dataclasses.replace(
                made,
                id=new_email_id(),
                session=dataclasses.replace(made.session, key_id=key),
                envelope=dataclasses.replace(made.envelope, recipients=(Address("to@example.net"),)),
            )
            if not isinstance(outcome := accept(made), str):
                raise SystemExit(f"not taken: {outcome}")

    with ThreadPoolExecutor(sessions) as pool:
        began = time.perf_counter()
        list(pool.map(session, range(sessions)))
        return (time.perf_counter() - began) / count * 1e6


def side_by_side(database: Database, key: KeyId, directory: Path, sessions: int, count: int) -> dict[str, float]:
    """Take turns, so that what else the machine does hits both alike; the median of the rounds."""
    path = directory / "bench.yaml"
    path.write_text(json.dumps({"database": {"password_dir": str(database.password_dir)}}))
    os.environ["DATABASE_URL"] = database.url
    lanes = open_lanes(load(path))
    without: list[float] = []
    limited: list[float] = []
    try:
        with throttled(database, GENEROUS) as (throttle, _):

            def accept_limited(one: Message) -> object:
                decision = throttle.check(one.session.client_address, one.session.key_id)
                return lanes.accept(one) if decision.allowed else decision

            accepting(lanes.accept, key, sessions, count)
            for _ in range(5):
                without.append(accepting(lanes.accept, key, sessions, count))
                limited.append(accepting(accept_limited, key, sessions, count))
    finally:
        lanes.close()
    median = {"without_us": sorted(without)[2], "with_us": sorted(limited)[2]}
    return {"sessions": sessions, **{name: round(value, 1) for name, value in median.items()}}


def account(database: Database) -> KeyId:
    """Make a user with a verified domain; return the id of a key."""
    user_id = f"user-{uuid4()}"
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', %s)", [user_id]
        )
        row = connection.execute(
            "INSERT INTO api_keys (name, token_hash, user_id) VALUES ('bench', gen_random_uuid(), %s)"
            " RETURNING id::text",
            [user_id],
        ).fetchone()
    if not row:
        raise SystemExit("no key")
    return KeyId(row[0])


def measure(at_once: int, messages: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what was measured, with its figures."""
    private_postgres.SETTINGS.update(_DURABLE)
    with tempfile.TemporaryDirectory(prefix="os-bench-") as made, running_cluster() as cluster:
        directory = Path(made)
        migrations.init(cluster.new_database("bench"), directory / "passwords")
        database = Database("bench", cluster, directory / "passwords")
        key = account(database)
        yield "decisions", decisions(database, key, at_once)
        for per_s in (10, 100, 500):
            yield "steady", paced(database, key, per_s, per_s * 4)
        for sessions in (1, 20):
            yield "accept path", side_by_side(database, key, directory, sessions, messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=200_000)
    parser.add_argument("--messages", type=int, default=1_000, help="in each round of the accept path")
    arguments = parser.parse_args()
    for what, figures in measure(arguments.decisions, arguments.messages):
        print(json.dumps({"what": what, **figures}), flush=True)


if __name__ == "__main__":
    main()
