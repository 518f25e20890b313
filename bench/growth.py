"""`make bench-growth`: what a message costs beside millions of rows, against the same with empty tables."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import LiteralString

from psycopg import sql

from bench.compare import about_machine, write
from bench.figures import Figures, ratios, spread
from bench.measuring import measure
from bench.systems import Stand, System, running_stand

KEYS = DOMAINS = 10_000
# Half of all is the sender's own: what is asked for lies among much of its kind.
_OWNER = """
    CREATE FUNCTION pg_temp.owner(n integer, sender text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN n % 2 = 0 THEN sender ELSE 'user-' || n % 1000 END
"""
_INDEXES = """
    UPDATE pg_index SET indisready = %(ready)s, indisvalid = %(ready)s WHERE indrelid = (%(table)s)::regclass"""
_STATEMENTS: Mapping[str, tuple[str, LiteralString]] = {
    "keys": (
        "public.api_keys",
        """
        INSERT INTO api_keys (name, token_hash, user_id)
        SELECT 'bench', encode(sha256(n::text::bytea), 'hex'), pg_temp.owner(n, %(user)s)
        FROM generate_series(1, %(keys)s) n
    """,
    ),
    "domains": (
        "public.domains",
        """
        INSERT INTO domains (name, status, user_id)
        SELECT 'bench-' || n || '.example', 'verified', pg_temp.owner(n, %(user)s)
        FROM generate_series(1, %(domains)s) n
    """,
    ),
    "suppressions": (
        "public.email_suppressions",
        """
        INSERT INTO email_suppressions (user_id, email, reason)
        SELECT pg_temp.owner(n, %(user)s), 'gone-' || n || '@example.net', 'bounce' FROM generate_series(1, %(rows)s) n
    """,
    ),
    "emails": (
        "public.emails",
        """
        INSERT INTO emails ("from", "to", subject, text, status, user_id, created_at)
        SELECT 'app@example.org', jsonb_build_array('to' || n || '@example.net'), 'measured ' || n, repeat('text ', 40),
            'sent', pg_temp.owner(n, %(user)s), now() - n * interval '1 second'
        FROM generate_series(1, %(rows)s) n
    """,
    ),
    "submissions": (
        "opensend_milter.submissions",
        """
        INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
            client_address, tls, sender, from_address, recipients, size_bytes, sha256)
        SELECT id, created_at, user_id, %(key)s, 'smtp', id::text, '127.0.0.1', 'TLSv1.3', 'app@example.org',
            'app@example.org', ARRAY['to@example.net'], 2048, sha256(id::text::bytea)
        FROM emails WHERE status = 'sent'
    """,
    ),
}


def fill(stand: Stand, rows: int) -> None:
    """Put so many rows into the tables that every message asks or is written to."""
    with stand.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        found = connection.execute("SELECT id, user_id FROM api_keys WHERE name = 'sandbox'").fetchone()
        if not found:
            raise SystemExit("the sandbox has no key")
        values = {"key": found[0], "user": found[1], "rows": rows, "keys": KEYS, "domains": DOMAINS}
        connection.execute(_OWNER)
        connection.execute("SET maintenance_work_mem = '1GB'")
        for what, (table, statement) in _STATEMENTS.items():
            began = time.monotonic()
            # Indexes are built at the end, in one go: row by row ten million rows take an hour.
            connection.execute(_INDEXES, {"table": table, "ready": False})
            connection.execute(statement, values)
            connection.execute(_INDEXES, {"table": table, "ready": True})
            connection.execute(sql.SQL("REINDEX TABLE {}").format(sql.Identifier(*table.split("."))))
            print(f"filled {what} in {time.monotonic() - began:.0f} s", flush=True)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def compare(empty: System, grown: System, *, count: int, seconds: float) -> Mapping[str, list[Figures]]:
    """Measure both in turn; the first to go changes."""
    both = {"empty": empty, "grown": grown}
    found: dict[str, list[Figures]] = {name: [] for name in both}
    for system in both.values():
        measure(system.load(sessions=20, seconds=2), system.groups)
    for number in range(count):
        for name in sorted(both, reverse=bool(number % 2)):
            system = both[name]
            one = measure(system.load(sessions=20, seconds=seconds), system.groups)
            found[name].append(one)
            print(f"round {number + 1}  {_line(name, one)}", flush=True)
    return found


def _line(name: str, one: Figures) -> str:
    said = f"  ERRORS {one.errors}" if one.errors else ""
    spent = f"serve {one.cpu_of('milter'):.2f}  Postgres {one.cpu_of('postgres'):.2f} ms"
    return f"{name:6} {one.per_s:.0f}/s  p99 {one.p99_ms:.1f} ms  {spent}{said}"


def main() -> None:
    """Print the figures and keep them; exit 1 where a message was not taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in emails and in suppressions; the goal: 10000000")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with running_stand() as small, running_stand() as large:
        fill(large, arguments.rows)
        found = compare(small.ours(), large.ours(), count=arguments.rounds, seconds=arguments.seconds)
        small.check()
        large.check()
    cost = {name: [one.cpu_of("milter", "postgres") for one in figures] for name, figures in found.items()}
    rate = {name: [one.per_s for one in figures] for name, figures in found.items()}
    cost_ratio = ratios(cost["grown"], cost["empty"])
    print(
        f"\nWith {arguments.rows} emails and suppressions, {KEYS} keys and {DOMAINS} domains, against empty tables:\n"
        f"CPU of serve + Postgres per message: {cost_ratio} times ({spread(cost['empty'])} ms, then"
        f" {spread(cost['grown'])} ms)\nmessages per second: {ratios(rate['grown'], rate['empty'])} times"
    )
    made = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about_machine(),
        "rows": arguments.rows,
        "cost_ratio": cost_ratio and dataclasses.astuple(cost_ratio),
        "rounds": {name: [dataclasses.asdict(one) for one in figures] for name, figures in found.items()},
    }
    write("growth.json", made)
    sys.exit(any(one.errors for figures in found.values() for one in figures))


if __name__ == "__main__":
    main()
