"""Rate limits over the real database: what several processes take together, and what reaches the database at all."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from opensend_milter.adapters.postgres.link import Role
from opensend_milter.adapters.postgres.rates import PostgresLeases
from opensend_milter.core import rates
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import KeyId
from opensend_milter.core.rates import UNLIMITED, Ask, Bucket, Decision, Grant, RateLimits, burst_of
from opensend_milter.servers.throttle import Throttle, fields
from tests.integration.outbox import job_store
from tests.integration.private_postgres import Database
from tests.waiting import patience_s

KEY = KeyId("0198c5a2-7f00-7abc-8def-0123456789ab")
OTHER_KEY = KeyId("0198c5a2-7f00-7abc-8def-0123456789ac")
NONE = RateLimits(total_per_minute=0, client_per_minute=0, key_per_minute=0, failed_per_minute=0)
PROCESSES, ASKED_EACH = 4, 20_000
HAMMER = """
import sys, threading, time
from opensend_milter.adapters.postgres.rates import PostgresLeases
from opensend_milter.core.rates import RateLimits
from opensend_milter.servers.throttle import Throttle

class Counting(PostgresLeases):
    leases = 0
    def lease(self, asks):
        self.leases += 1
        return super().lease(asks)

url, per_minute, most, timeout_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
limits = RateLimits(total_per_minute=per_minute, client_per_minute=0, key_per_minute=0, failed_per_minute=0)
leases = Counting(url, name="hammer", timeout_s=timeout_s)
throttle = Throttle(leases, limits, timeout_s=timeout_s)
throttle.start()
taken = asked = 0
lock = threading.Lock()
began = time.monotonic()

def hammer():
    global taken, asked
    while asked < most:
        allowed = sum(throttle.check("192.0.2.7").allowed for _ in range(10))
        with lock:
            taken, asked = taken + allowed, asked + 10
        time.sleep(0.002)

threads = [threading.Thread(target=hammer) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ended = time.monotonic()
throttle.stop()
print(taken, asked, leases.leases, began, ended)
"""


def limits(*, total: int = 0, client: int = 0, key: int = 0, failed: int = 0) -> RateLimits:
    return RateLimits(total_per_minute=total, client_per_minute=client, key_per_minute=key, failed_per_minute=failed)


@contextmanager
def throttled(database: Database, limit: RateLimits, role: Role = "opensend_milter") -> Iterator[Throttle]:
    """A process's limiter, with the rights of that process."""
    leases = PostgresLeases(database.url_for(role), name="test-rates", timeout_s=patience_s())
    throttle = Throttle(leases, limit, timeout_s=patience_s())
    throttle.start()
    try:
        yield throttle
    finally:
        throttle.stop()


def refilled(began: float, per_minute: int) -> float:
    """Return how many tokens have come since."""
    return (time.monotonic() - began) * per_minute / 60


def level(database: Database, name: str) -> float:
    with database.connect() as connection:
        row = connection.execute("SELECT tokens FROM opensend_milter.rate_buckets WHERE name = %s", [name]).fetchone()
    assert row
    return float(row[0])


def test_processes_hammer_one_bucket(database: Database) -> None:
    """Together they get what the limit allows, no more, and most requests never reach the database."""
    per_minute = 1_200
    url = database.url_for("opensend_milter")
    command = [sys.executable, "-c", HAMMER, url, str(per_minute), str(ASKED_EACH), str(patience_s())]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    results = [[float(one) for one in process.communicate(timeout=patience_s())[0].split()] for process in running]
    *sums, all_began, all_ended = zip(*results, strict=True)
    taken, asked, leases = map(sum, sums)
    assert taken <= per_minute / 60 * (max(all_ended) - min(all_began)) + burst_of(per_minute)
    assert taken >= 0.9 * burst_of(per_minute)
    assert leases < asked / 10


def test_two_processes_share(database: Database) -> None:
    """Also where one is the milter and the other the HTTP process."""
    limit = limits(key=100)
    with throttled(database, limit) as one, throttled(database, limit, "opensend_http") as other:
        began = time.monotonic()
        granted = sum(each.check("192.0.2.7", KEY).allowed for _ in range(100) for each in (one, other))
        assert 85 <= granted <= 100 + refilled(began, 100)
        assert other.check("192.0.2.7", OTHER_KEY).allowed


def test_all_limits_are_checked_before_any_is_taken(database: Database) -> None:
    with throttled(database, limits(total=6_000, client=6_000, key=3)) as throttle:
        answers = [throttle.check("192.0.2.7", KEY) for _ in range(300)]
        assert sum(one.allowed for one in answers) == 3
        assert {one.tier for one in answers if not one.allowed} == {"key"}
        assert sum(throttle.check("192.0.2.7", OTHER_KEY).allowed for _ in range(3)) == 3
    for name in ("total", "client:192.0.2.7"):
        assert level(database, name) >= burst_of(6_000) - 20


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"], "2001:db8:1:3::1"),
        (["192.0.2.7", "::ffff:192.0.2.7"], "192.0.2.8"),
    ],
)
def test_one_client(database: Database, same: list[str], other: str) -> None:
    with throttled(database, limits(client=4)) as throttle:
        assert [throttle.check(address).allowed for address in same * 4] == [True] * 4 + [False] * 4
        assert throttle.check(other).allowed


def test_limit_of_the_key_itself(database: Database) -> None:
    """It is read with the tokens: nobody has to tell the process."""
    with throttled(database, NONE) as throttle, database.connect() as connection:
        assert throttle.check("192.0.2.7", KEY).tier is None
        connection.execute("INSERT INTO opensend_milter.key_settings (key_id, per_minute) VALUES (%s, 2)", [OTHER_KEY])
        answers = [throttle.check("192.0.2.7", OTHER_KEY) for _ in range(4)]
        assert [one.allowed for one in answers] == [True, True, False, False]
        assert answers[-1].limit == 2


def test_bulk(database: Database) -> None:
    with throttled(database, limits(key=100)) as throttle:
        assert throttle.check("192.0.2.7", KEY, 100).allowed
        refused = throttle.check("192.0.2.7", KEY, 100)
        assert not refused.allowed
        assert 30 < int(fields(refused)["Retry-After"]) <= 60


def test_some_of_a_bulk(database: Database) -> None:
    """As many as every limit has, and as are left by the others; more than a burst gets the burst."""
    with throttled(database, limits(client=60, key=30)) as throttle, throttled(database, limits(client=60)) as other:
        began = time.monotonic()
        taken, decision = throttle.check_some("192.0.2.7", KEY, 500)
        assert (taken, decision.tier, decision.allowed, decision.remaining) == (30, "key", True, 0)
        assert throttle.check_some("192.0.2.7", KEY, 1)[0] <= refilled(began, 30)
        taken, decision = other.check_some("192.0.2.7", None, 500)
        assert 25 <= taken <= 30 + 1 + refilled(began, 60)
        assert decision.tier == "client"
        taken, decision = throttle.check_some("192.0.2.7", OTHER_KEY, 500)
        assert taken <= 5 + refilled(began, 60)
        assert throttle.check_some("192.0.2.8", OTHER_KEY, 20)[0] == 20
    with throttled(database, NONE) as throttle:
        assert throttle.check_some("192.0.2.7", KEY, 500) == (500, UNLIMITED)


def test_many_take_some_at_once(database: Database) -> None:
    """Together no more than there is, and none of it is left lying."""
    with throttled(database, limits(key=600)) as one, throttled(database, limits(key=600)) as other:
        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda n: (one, other)[n % 2].check_some("192.0.2.7", KEY, 50)[0], range(64))
            taken = sum(found)
        assert 90 <= taken <= 100 + refilled(began, 600)


def test_limits_may_be_replaced(database: Database) -> None:
    with throttled(database, limits(key=1)) as throttle:
        assert [throttle.check("192.0.2.7", KEY).allowed for _ in range(2)] == [True, False]
        throttle.set_limits(NONE)
        assert all(throttle.check("192.0.2.7", KEY).allowed for _ in range(10))
        throttle.set_limits(limits(client=1))
        assert [throttle.check("192.0.2.7", KEY).allowed for _ in range(2)] == [True, False]


def test_failed_logins(database: Database) -> None:
    """After so many a client is refused without a question, in every process that it fails in; others are not."""
    limit = limits(failed=6)
    with throttled(database, limit, "opensend_http") as one, throttled(database, limit, "opensend_http") as other:
        began, asked = time.monotonic(), 0
        for _ in range(100):
            if not one.failing("2001:db8::1"):
                one.note_failure("2001:db8::2")
                asked += 1
        assert 6 <= asked <= 8 + refilled(began, 6)
        other.note_failure("2001:db8::3")
        assert other.failing("2001:db8::4")
        assert not one.failing("2001:db8:1::1")


def test_many_threads_share_round_trips(database: Database) -> None:
    """Whoever waits for the database waits with the others, and no token is taken twice."""
    with throttled(database, limits(total=6_000, client=60)) as throttle, ThreadPoolExecutor(32) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda number: throttle.check(f"192.0.2.{number % 20}").allowed, range(4_000)))
        assert 900 <= sum(answers) <= 1_000 + refilled(began, 6_000)


def test_decides_at_once_or_not_at_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event loop may call: it never waits."""
    monkeypatch.setattr(rates, "HELD_S", patience_s())
    with throttled(database, limits(total=6_000)) as throttle:
        assert throttle.check_at_once("192.0.2.7", KEY) is None
        for _ in range(20):
            assert throttle.check("192.0.2.7").allowed
        decided = [throttle.check_at_once("192.0.2.7", KEY) for _ in range(3)]
        assert any(one and one.allowed for one in decided)


def test_database_away(database: Database) -> None:
    """What is held is given out; the rest is a fault of ours, at once; and it goes on when the database is back."""
    with throttled(database, limits(client=600)) as throttle:
        assert throttle.check("192.0.2.7").allowed
        database.cluster.stop()
        with pytest.raises(StoreUnavailable):
            throttle.check("192.0.2.8")
        database.cluster.start()
        assert throttle.check("192.0.2.8").allowed


def test_slow_database_delays_only_who_needs_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of which tokens are held are not behind those that are waited for."""
    monkeypatch.setattr(rates, "HELD_S", patience_s())
    with throttled(database, limits(client=6_000)) as throttle, ExitStack() as stack:
        for _ in range(30):
            throttle.check("192.0.2.7")
        waiting = threading.Thread(target=throttle.check, args=("192.0.2.8",))
        database.cluster.pause()
        waiting.start()
        stack.callback(waiting.join)
        stack.callback(database.cluster.resume)
        assert throttle.check("192.0.2.7").allowed
        assert waiting.is_alive(), "the database still stands still"


def test_stopped_one_raises(database: Database) -> None:
    with throttled(database, limits(client=600)) as throttle:
        pass
    with pytest.raises(StoreUnavailable):
        throttle.check("192.0.2.7")


@pytest.mark.parametrize("role", ["opensend_milter", "opensend_http"])
def test_both_create_the_same_bucket(database: Database, role: Role) -> None:
    """Whoever comes second takes from what the first created."""
    bucket = Bucket("total", "total", 600)
    leases = PostgresLeases(database.url_for(role), name="test-rates", timeout_s=patience_s())
    began = time.monotonic()
    with database.connect() as connection, ThreadPoolExecutor(1) as pool:
        with connection.transaction():
            connection.execute("INSERT INTO opensend_milter.rate_buckets (name, tokens) VALUES ('total', 5)")
            waiting = pool.submit(leases.lease, [Ask(bucket, 1, 100, 0)])
            database.await_blocked()
        (grant,) = waiting.result()
    leases.close()
    assert 5 <= grant.tokens <= 5 + refilled(began, 600)


def test_one_lease_after_the_other(database: Database) -> None:
    """Who waited for a bucket sees what was left of it."""
    leases = PostgresLeases(database.url_for("opensend_milter"), name="test-rates", timeout_s=patience_s())
    with database.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("INSERT INTO opensend_milter.rate_buckets VALUES ('total', 60, now())")
        with connection.transaction():
            began = time.monotonic()
            connection.execute("UPDATE opensend_milter.rate_buckets SET tokens = 7, refilled_at = clock_timestamp()")
            waiting = pool.submit(leases.lease, [Ask(Bucket("total", "total", 60), 1, 60, 0)])
            database.await_blocked()
        assert 7 <= waiting.result()[0].tokens <= 7 + refilled(began, 60)
    leases.close()


def test_tokens_go_back(database: Database) -> None:
    """Up to the burst; and who gets less than he can use gets nothing."""
    leases = PostgresLeases(database.url_for("opensend_milter"), name="test-rates", timeout_s=patience_s())
    bucket = Bucket("key", "key:a", 1, KEY), Bucket("client", "client:a", 100)
    began = time.monotonic()
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO opensend_milter.rate_buckets VALUES ('key:a', 0, now()), ('client:a', 50, now())"
        )
    key, client = leases.lease([Ask(bucket[0], 1, 5, 0), Ask(bucket[1], 80, 100, 0)])
    assert (key.tokens, client.tokens, client.left <= 50 + refilled(began, 100)) == (0, 0, True)
    key, client = leases.lease([Ask(bucket[0], 1, 5, 7), Ask(bucket[1], 80, 90, 40)])
    assert (key.tokens, client.tokens, client.left <= 10 + refilled(began, 100)) == (1, 90, True)
    leases.close()


class _Broken:
    """A store with a fault of ours."""

    def lease(self, _asks: Sequence[Ask]) -> list[Grant]:
        raise ZeroDivisionError

    def close(self) -> None: ...


def test_fault_of_ours_keeps_nobody_waiting() -> None:
    """It counts as a store that is away, each time."""
    throttle = Throttle(_Broken(), limits(client=600), timeout_s=60)
    throttle.start()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            throttle.check("192.0.2.7")
    throttle.stop()


def test_nobody_waits_for_one_who_waits_for_him(database: Database) -> None:
    """Many want the same buckets in any order, and some of them are new."""
    chance = random.Random(5)
    buckets = [Bucket("client", f"client:{number}", 6_000) for number in range(300)]
    orders = [[chance.sample(buckets[: 40 + 5 * turn], 40) for turn in range(50)] for _ in range(4)]

    def lease(order: list[list[Bucket]]) -> int:
        leases = PostgresLeases(database.url_for("opensend_milter"), name="test-rates", timeout_s=patience_s())
        granted = [leases.lease([Ask(bucket, 1, 1, 0) for bucket in some]) for some in order]
        leases.close()
        return sum(grant.tokens for turn in granted for grant in turn)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lease, orders)) == [2_000] * 4


def test_clock_that_was_set_back(database: Database) -> None:
    """A bucket that was refilled in the future gives what it has, and refills from now on."""
    leases = PostgresLeases(database.url_for("opensend_milter"), name="test-rates", timeout_s=patience_s())
    began = time.monotonic()
    with database.connect() as connection:
        connection.execute("INSERT INTO opensend_milter.rate_buckets VALUES ('total', 3, now() + interval '1 hour')")
    bucket = Bucket("total", "total", 60)
    assert leases.lease([Ask(bucket, 1, 10, 0)])[0].tokens == 3
    with database.connect() as connection:
        connection.execute("SELECT pg_sleep(1.1)")
    assert 1 <= leases.lease([Ask(bucket, 1, 100, 0)])[0].tokens <= refilled(began, 60)
    leases.close()


def test_prune(database: Database) -> None:
    """What is full by now goes, by the worker, in batches; what was used lately stays."""
    with throttled(database, limits(client=60)) as throttle:
        assert throttle.check("192.0.2.7").allowed
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO opensend_milter.rate_buckets"
            " SELECT 'client:' || n, 1, now() - interval '11 minutes' FROM generate_series(1, 2500) n"
        )
        store = job_store(database)
        assert store.prune() == 2_500
        assert store.prune() == 0
        store.close()
        left = connection.execute("SELECT name FROM opensend_milter.rate_buckets").fetchall()
    assert left == [("client:192.0.2.7",)]


def test_prune_leaves_what_is_just_used(database: Database) -> None:
    """A lease that is under way when the batch is chosen counts."""
    with database.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(
            "INSERT INTO opensend_milter.rate_buckets VALUES ('total', 1, now() - interval '11 minutes')"
        )
        store = job_store(database)
        with connection.transaction():
            connection.execute("UPDATE opensend_milter.rate_buckets SET tokens = 0, refilled_at = now()")
            waiting = pool.submit(store.prune)
            database.await_blocked()
        assert waiting.result() == 0
        store.close()


def test_fields() -> None:
    """As the current draft writes them; nothing where there is no limit."""
    assert fields(UNLIMITED) == {}
    allowed = Decision(allowed=True, tier="key", retry_after_s=0, remaining=59, limit=60, reset_s=0.2)
    assert fields(allowed) == {"RateLimit-Policy": '"key";q=60;w=60', "RateLimit": '"key";r=59;t=1'}
    refused = Decision(allowed=False, tier="client", retry_after_s=0.1, remaining=0, limit=60, reset_s=60)
    assert fields(refused) == {
        "RateLimit-Policy": '"client";q=60;w=60',
        "RateLimit": '"client";r=0;t=60',
        "Retry-After": "1",
    }
