"""Rate limits: token buckets that all processes share, of which each process holds a block for a moment."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Literal, Protocol

from opensend_milter.core.model import KeyId

Tier = Literal["total", "client", "key", "failed"]

MINUTE_S = 60.0
BURST_S = 10.0
SMALL_BURST = 100
"""A burst is `BURST_S` worth of tokens, but so many where a minute allows them: a bulk request fits in."""
HELD_S = 2.0
"""What a process has not used by then goes back."""
KNOWN_S = 1.0
"""For how long it is believed what the shared bucket held."""
PAUSE_S = 0.1
"""How often a process asks for a bucket that was empty, however fast it fills."""
MOST_BLOCKS = 100_000
IDLE_S = 60.0
"""Whatever the limit, a bucket is full again by then."""


def burst_of(per_minute: int) -> float:
    """Return how many tokens a full bucket holds: never more than a minute brings."""
    return max(per_minute * BURST_S / MINUTE_S, min(per_minute, SMALL_BURST))


@lru_cache(maxsize=10_000)
def client_of(address: str) -> str:
    """Name whom we count as one client: an IPv4 address, or the /64 that an IPv6 host may choose its addresses from."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit: `per_minute` 0 is none, but a key may have one of its own, which the store knows."""

    tier: Tier
    name: str
    per_minute: int
    key_id: KeyId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """How much in a minute; 0: no limit."""

    total_per_minute: int
    client_per_minute: int
    key_per_minute: int
    failed_per_minute: int

    def of_message(self, client_address: str, key_id: KeyId | None) -> tuple[Bucket, ...]:
        """Return the buckets that a message takes from; without its key, those that are known before it."""
        buckets = (
            Bucket("total", "total", self.total_per_minute),
            Bucket("client", f"client:{client_of(client_address)}", self.client_per_minute),
        )
        return buckets if key_id is None else (*buckets, Bucket("key", f"key:{key_id}", self.key_per_minute, key_id))

    def of_failure(self, client_address: str) -> tuple[Bucket, ...]:
        """Return the bucket that a failed authentication takes from."""
        return (Bucket("failed", f"failed:{client_of(client_address)}", self.failed_per_minute),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Yes or no, and how the limit stands that refuses, or is nearest to it."""

    allowed: bool
    tier: Tier | None
    """None: no limit applies."""
    retry_after_s: float
    remaining: int
    limit: int
    """Per minute."""
    reset_s: float
    """Until the bucket is full, if nothing is taken."""

    def with_refused(self, count: int) -> Decision:
        """Return how the limit stands for so many that were refused: they fit then, or as many as a full bucket."""
        if not count:
            return replace(self, allowed=True)
        wait_s = min((count - self.remaining) * MINUTE_S / max(self.limit, 1), self.reset_s)
        return replace(self, allowed=False, retry_after_s=max(wait_s, PAUSE_S))


UNLIMITED = Decision(allowed=True, tier=None, retry_after_s=0, remaining=0, limit=0, reset_s=0)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a process wants of a shared bucket."""

    bucket: Bucket
    least: int
    """Less is of no use."""
    most: int
    back: int
    """Tokens that it was given and has not used."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What it gets."""

    tokens: int
    left: float
    """In the shared bucket, after that."""
    per_minute: int
    """The limit that applies; 0: none."""


class Leases(Protocol):
    """The shared buckets, for one thread. Raises StoreUnavailable."""

    def lease(self, asks: Sequence[Ask]) -> list[Grant]:
        """Give back, refill by the store's own clock and take, for buckets that differ, in one round trip."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Block:
    """What this process holds of a bucket, and knows of it."""

    tier: Tier
    per_minute: int
    used_at: float
    tokens: int = 0
    used: int = 0
    size: int = 1
    leased_at: float = -math.inf
    left: float = 0.0
    """In the shared bucket at that time."""

    def is_enough(self, count: int, now: float) -> bool:
        """Tell whether so many may be taken without asking."""
        return now < self.leased_at + HELD_S and (self.tokens >= count or not self.per_minute)

    def is_refused(self, count: int, now: float) -> bool:
        """Tell whether asking is known to be in vain: a flood must not reach the store."""
        if self.is_enough(count, now) or now >= self.leased_at + KNOWN_S:
            return False
        return self.available(now) < count or (self.left < 1 and now < self.leased_at + PAUSE_S)

    def available(self, now: float) -> float:
        """Return what may be had, as far as is known here; all of it where nothing is."""
        refilled = self.left + (now - self.leased_at) * self.per_minute / MINUTE_S
        return min(self.tokens + refilled, burst_of(self.per_minute))

    def next_size(self, now: float) -> int:
        """Return what a second needs at the present use, found by doubling; at most a tenth of the burst."""
        per_second = self.used / max(now - self.leased_at, 0.001)
        return max(1, int(min(self.size * 2, math.ceil(per_second), burst_of(self.per_minute) / 10)))

    def decision(self, count: int, now: float, *, allowed: bool) -> Decision:
        """Say how this limit stands."""
        per_second = max(self.per_minute, 1) / MINUTE_S
        available, burst = self.available(now), burst_of(self.per_minute)
        # More than a burst never comes at once: then it is time for a part of it.
        missing = min(count, burst) - available
        return Decision(
            allowed=allowed,
            tier=self.tier,
            retry_after_s=0.0 if allowed else max(missing / per_second, PAUSE_S),
            remaining=int(available),
            limit=self.per_minute,
            reset_s=max(burst - available, 0) / per_second,
        )


@dataclass(slots=True)
class _Want:
    bucket: Bucket
    least: int
    total: int


@dataclass(slots=True)
class Blocks:
    """What one process holds of all buckets; for any number of threads, none of which waits here for a store."""

    clock: Callable[[], float]
    at_most: int = MOST_BLOCKS
    _blocks: OrderedDict[str, _Block] = field(default_factory=OrderedDict)
    """Those used last are at the end."""
    _wants: dict[str, _Want] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._blocks)

    def decide(self, buckets: Iterable[Bucket], count: int = 1) -> Decision | None:
        """Take `count` of each bucket, or of none; None: the store must be asked first, and is to be told `asks`."""
        now = self.clock()
        with self._lock:
            held = [(bucket, self._block(bucket, now)) for bucket in buckets if bucket.per_minute or bucket.key_id]
            refusals = [block for _, block in held if block.is_refused(count, now)]
            if refusals:
                refused = [block.decision(count, now, allowed=False) for block in refusals]
                return max(refused, key=lambda one: one.retry_after_s)
            lacking = [bucket for bucket, block in held if not block.is_enough(count, now)]
            for bucket in lacking:
                self._want(bucket, count)
            return None if lacking else _take([block for _, block in held], count, now)

    def refusal(self, buckets: Iterable[Bucket]) -> Decision | None:
        """Return the refusal that is known here already; nothing is taken and nobody is asked."""
        now = self.clock()
        with self._lock:
            for bucket in buckets:
                block = self._blocks.get(bucket.name)
                # Believed for longer than what `decide` does: whoever is let on here makes us ask for his key.
                if bucket.per_minute and block and block.available(now) < 1:
                    return block.decision(1, now, allowed=False)
        return None

    def asks(self) -> list[Ask]:
        """Return what the store is to be asked now."""
        now = self.clock()
        with self._lock:
            wants, self._wants = self._wants, {}
            # An earlier answer may have brought it meanwhile.
            return [
                self._ask(want, block, now)
                for want in wants.values()
                if not (block := self._block(want.bucket, now)).is_enough(want.total, now)
            ]

    def note(self, asks: Sequence[Ask], grants: Sequence[Grant]) -> None:
        """Take in what the store answered."""
        now = self.clock()
        with self._lock:
            for ask, grant in zip(asks, grants, strict=True):
                block = self._block(ask.bucket, now)
                block.tokens += grant.tokens
                block.per_minute, block.left = grant.per_minute, grant.left
                block.leased_at, block.used = now, 0

    def forget(self) -> None:
        """Start anew: the limits have changed. What was held is lost."""
        with self._lock:
            self._blocks.clear()

    def _block(self, bucket: Bucket, now: float) -> _Block:
        block = self._blocks.get(bucket.name)
        if block is None:
            block = self._blocks[bucket.name] = _Block(bucket.tier, bucket.per_minute, now)
            self._drop_idle(now)
        else:
            self._blocks.move_to_end(bucket.name)
            block.used_at = now
        return block

    def _drop_idle(self, now: float) -> None:
        while len(self._blocks) > self.at_most or next(iter(self._blocks.values())).used_at < now - IDLE_S:
            self._blocks.popitem(last=False)

    def _want(self, bucket: Bucket, count: int) -> None:
        want = self._wants.setdefault(bucket.name, _Want(bucket, count, 0))
        want.least = min(want.least, count)
        want.total += count

    def _ask(self, want: _Want, block: _Block, now: float) -> Ask:
        back = 0
        if now >= block.leased_at + HELD_S:
            back, block.tokens = block.tokens, 0
        block.size = block.next_size(now)
        least = max(want.least - block.tokens, 1)
        return Ask(want.bucket, least, max(want.total - block.tokens, block.size, least), back)


def _take(blocks: Sequence[_Block], count: int, now: float) -> Decision:
    limited = [block for block in blocks if block.per_minute]
    for block in limited:
        block.tokens -= count
        block.used += count
    if not limited:
        return UNLIMITED
    return min(limited, key=lambda block: block.available(now)).decision(count, now, allowed=True)


@dataclass(slots=True)
class Allowance:
    """What each client may still try, counted by this process alone: the database is not asked, or not there."""

    per_minute: int
    clock: Callable[[], float]
    at_most: int = MOST_BLOCKS
    who: Callable[[str], str] = client_of
    """Names whom we count as one."""
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """Tokens and when they were counted; those used last are at the end."""

    def wait_s(self, address: str) -> float:
        """Return how long a client must wait before it may try again; 0: it may."""
        level = self._level(self.who(address)) if self.per_minute else 1.0
        return max(1 - level, 0) * MINUTE_S / max(self.per_minute, 1)

    def note(self, address: str) -> None:
        """Count one. Several that were under way at once are all counted: the level may fall below zero."""
        client = self.who(address)
        level = max(self._level(client) - 1, -burst_of(self.per_minute))
        self._levels[client] = level, self.clock()
        self._levels.move_to_end(client)
        if len(self._levels) > self.at_most:
            self._levels.popitem(last=False)

    def _level(self, client: str) -> float:
        burst = burst_of(self.per_minute)
        level, counted_at = self._levels.get(client, (burst, 0.0))
        return min(burst, level + (self.clock() - counted_at) * self.per_minute / MINUTE_S)
