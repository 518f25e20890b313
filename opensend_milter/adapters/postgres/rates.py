"""Leases over psycopg: the buckets that all processes and hosts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opensend_milter.adapters.postgres.link import Link, statements
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.rates import BURST_S, SMALL_BURST, Ask, Grant

SQL = statements("rates")
_ROUNDS = 5


class PostgresLeases:
    """Leases for one thread."""

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
