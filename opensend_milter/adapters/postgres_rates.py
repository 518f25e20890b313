"""Leases over psycopg: the buckets that all processes and hosts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from opensend_milter.adapters.postgres import Link, statements
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.rates import BURST_S, IDLE_S, SMALL_BURST, Ask, Grant

SQL = statements("rates")
FULL_AFTER = timedelta(seconds=10 * IDLE_S)
PRUNED_AT_ONCE = 1_000
PRUNE_ROUNDS = 50
_ROUNDS = 5


class PostgresLeases:
    """Leases for one thread; for the worker, what prunes them."""

    def __init__(self, info: str, *, name: str, timeout_s: float) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def lease(self, asks: Sequence[Ask]) -> list[Grant]:
        """Give back, refill and take, in one round trip unless a bucket is new."""
        grants: dict[str, Grant] = {}
        for _ in range(_ROUNDS):
            with self._link.lend() as connection:
                rest = [ask for ask in asks if ask.bucket.name not in grants]
                for name, tokens, left, per_minute in connection.execute(SQL["lease"], _values(rest)):
                    grants[name] = Grant(tokens, left, per_minute)
                new = [ask.bucket.name for ask in rest if ask.bucket.name not in grants]
                if not new:
                    return [grants[ask.bucket.name] for ask in asks]
                connection.execute(SQL["create"], {"names": new})
        raise StoreUnavailable("buckets come and go")

    def prune(self) -> int:
        """Delete what is full, which is what a bucket without a row is. Return how many."""
        pruned = 0
        for _ in range(PRUNE_ROUNDS):
            with self._link.lend() as connection:
                batch = connection.execute(SQL["prune"], {"age": FULL_AFTER, "limit": PRUNED_AT_ONCE}).rowcount
            pruned += batch
            if batch < PRUNED_AT_ONCE:
                break
        return pruned


def _values(asks: Sequence[Ask]) -> Mapping[str, object]:
    return {
        "names": [ask.bucket.name for ask in asks],
        "least": [ask.least for ask in asks],
        "most": [ask.most for ask in asks],
        "back": [ask.back for ask in asks],
        "per_minute": [ask.bucket.per_minute for ask in asks],
        "key_ids": [ask.bucket.key_id for ask in asks],
        "burst_s": BURST_S,
        "small_burst": SMALL_BURST,
    }
