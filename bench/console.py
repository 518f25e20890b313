"""`make bench-console`: how large the console's pages are among a million messages, and how long the server takes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.compare import about_machine, write
from bench.figures import percentile
from bench.lookup import LEFT, SELDOM, fill, new_database, took
from bench.systems import await_true
from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.core.passwords import verifier_of
from opensend_milter.host.requirements import free_ports
from tests.integration import many_messages
from tests.integration.console_browser import Browser, Shown
from tests.integration.private_postgres import Database

NAME, PASSWORD = "bench", "as long as it has to be"
MUST_MS, MUST_BYTES = 50.0, 60_000
REFUSED, WAITING = 10, 100
"""One refusal for so many messages, and one message of so many that waits."""
_LISTED = """
    INSERT INTO api_keys (name, token_hash, permission, user_id, last_used_at)
        SELECT 'key ' || n, md5(n::text), 'sending_access', 'user-' || n, now() FROM generate_series(1, 50) n;
    INSERT INTO opensend_milter.key_settings (key_id, per_day) SELECT id, 5000 FROM api_keys;
    INSERT INTO domains (name, status, user_id)
        SELECT 'd' || n || '.example', 'verified', 'user-' || n FROM generate_series(1, 50) n;
    INSERT INTO email_suppressions (user_id, email, reason)
        SELECT 'user-' || n, 'to' || n || '@d' || n || '.example', 'bounced' FROM generate_series(1, 50) n;
    INSERT INTO webhooks (url, event_types, user_id)
        SELECT 'https://hooks' || n || '.example/mail', '["email.sent"]', 'user-' || n FROM generate_series(1, 50) n"""
_JOBS = """
    INSERT INTO opensend_milter.jobs (email_id, user_id, created_at, not_before, announce_at)
    SELECT id, user_id, created_at, created_at, NULL FROM emails ORDER BY created_at DESC LIMIT %s"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One page."""

    what: str
    octets: int
    first_ms: float
    """When it was asked for the first time: what is counted for many stands there for a while."""
    p50_ms: float
    p99_ms: float

    @property
    def is_met(self) -> bool:
        return self.p99_ms <= MUST_MS and self.octets <= MUST_BYTES

    def __str__(self) -> str:
        return (
            f"| {self.what} | {self.octets / 1000:.1f} | {self.first_ms:.1f} | {self.p50_ms:.1f} | {self.p99_ms:.1f} |"
            f" {'met' if self.is_met else 'MISSED'} |"
        )


def seed(database: Database, rows: int) -> None:
    """Fill the tables, and let somebody in."""
    fill(database, rows)
    key = "44444444-4444-4444-8444-444444444444"
    took("refusals", lambda: many_messages.put_refusals(database, rows // REFUSED, key=key, user="user-500"))
    with database.connect() as connection:
        connection.execute(_JOBS, [rows // WAITING])
        connection.execute(_LISTED)
        ConsoleUsers(connection).put(NAME, verifier_of(PASSWORD, b"salt"))
        took("vacuum", lambda: connection.execute("VACUUM ANALYZE"))


@contextmanager
def serving(database: Database) -> Iterator[Browser]:
    """Start the console as it is run; yield somebody who has logged in."""
    port = free_ports(["console"])["console"]
    with tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as made:
        place = Path(made)
        config = {"database": {"password_dir": str(database.password_dir)}, "console": {"port": port}}
        (place / "config.yaml").write_text(json.dumps(config))
        command = [sys.executable, "-m", "opensend_milter", "console", "--config", str(place / "config.yaml")]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "DATABASE_URL": database.url},
            )  # fmt: skip
        try:
            browser = Browser(port)
            await_true("the console", lambda: process.poll() is not None or _lets_in(browser))
            if process.poll() is not None:
                raise SystemExit((place / "log").read_text())
            yield browser
        finally:
            process.terminate()
            process.wait()


def _lets_in(browser: Browser) -> bool:
    try:
        return browser.log_in(name=NAME, password=PASSWORD).status == 200  # noqa: PLR2004  # HTTP's own
    except ConnectionError:
        return False


def pages(connection: Connection, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield what is looked at, by so many different addresses of a kind where there are."""
    numbers = [1 + number * LEFT // count for number in range(count)]
    found = connection.execute(
        "SELECT id::text FROM emails WHERE split_part(subject, ' ', 3) = ANY (%s)", [[*map(str, numbers)]]
    )
    ids = [row[0] for row in found]
    refusals = connection.execute("SELECT id FROM opensend_milter.refusals ORDER BY refused_at DESC LIMIT %s", [count])
    ((older,),) = connection.execute(
        "SELECT (extract(epoch FROM created_at) * 1e6)::bigint || '-' || id FROM emails ORDER BY created_at LIMIT 1"
        " OFFSET 5000"
    )
    yield "Now", ["/now"] * count
    yield "Volume, 24 h", ["/volume?span=24h"] * count
    yield "Volume, 7 d", ["/volume?span=7d"] * count
    yield "Volume, 30 d", ["/volume?span=30d"] * count
    yield "Messages", ["/messages"] * count
    yield "Messages, a page far down", [f"/messages?before={older}"] * count
    yield "Messages, a recipient", [f"/messages?q=to{number}@d{number % 1_000}.example" for number in numbers]
    yield "Messages, nobody's address", [f"/messages?q=nobody{number}@shop.example" for number in numbers]
    yield f"Messages, a word of {SELDOM:,}", ["/messages?q=fragile"] * count
    yield "Messages, a word of all", ["/messages?q=parcel"] * count
    yield "Messages, by a status", ["/messages?status=sent"] * count
    yield "Messages, by a status that none has", ["/messages?status=bounced"] * count
    yield "Messages, of a domain", ["/messages?domain=shop.example"] * count
    yield "Messages, of an hour", [f"/messages?since={datetime.now(UTC):%Y-%m-%dT%H:00Z}"] * count
    yield "Refusals", ["/messages?status=refused"] * count
    yield "Refusals, by a rule", ["/messages?status=refused&rule=too-large"] * count
    yield "Refusals, of a domain that none has", ["/messages?status=refused&domain=example.net"] * count
    yield "one message", [f"/messages/{one}" for one in ids]
    yield "one refusal", [f"/messages/{one}" for (one,) in refusals]
    for name in ("keys", "domains", "suppressions", "webhooks"):
        yield name.title(), [f"/{name}"] * count


def measure(browser: Browser, what: str, asked: Sequence[str]) -> Line:
    """Ask for each once to warm up, and again."""
    spent: list[float] = []
    answers: list[Shown] = []
    for one in [*asked, *asked]:
        began = time.perf_counter()
        # What finds one message leads there: that is another page.
        answers.append(browser.get(one, follow=False))
        spent.append((time.perf_counter() - began) * 1e3)
        if answers[-1].status not in {200, 303}:
            raise SystemExit(f"{one}: {answers[-1].status} {answers[-1].words}")
    measured = spent[len(asked) :]
    return Line(
        what=what,
        octets=max(len(one.body) for one in answers),
        first_ms=spent[0],
        p50_ms=median(measured),
        p99_ms=percentile(measured, 0.99),
    )


def main() -> None:
    """Print the figures and keep them; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="messages; the goal: 10000000")
    parser.add_argument("--count", type=int, default=100, help="how often each is asked for")
    arguments = parser.parse_args()
    with new_database() as database:
        seed(database, arguments.rows)
        with database.connect() as connection, serving(database) as browser:
            print(
                f"\nAmong {arguments.rows:,} messages and {arguments.rows // REFUSED:,} refusals:\n"
                "| page | kB | first, ms | p50 | p99 | |\n|---|---|---|---|---|---|"
            )
            lines = []
            for what, asked in pages(connection, arguments.count):
                lines.append(measure(browser, what, asked))
                print(lines[-1], flush=True)
    made = {"machine": about_machine(), "rows": arguments.rows, "lines": [asdict(line) for line in lines]}
    write("console.json", {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **made})
    sys.exit(not all(line.is_met for line in lines))


if __name__ == "__main__":
    main()
