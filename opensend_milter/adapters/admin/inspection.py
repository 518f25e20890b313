"""Checks of the database: reachable, durable, at our version, with the right roles, and what waits in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from psycopg import errors

from opensend_milter.adapters.admin import connections, lanes
from opensend_milter.adapters.admin.connections import BUSY_SHARE
from opensend_milter.adapters.admin.verification import STAND_IN, connect_as_owner
from opensend_milter.adapters.postgres.link import (
    Connection,
    Role,
    connect,
    conninfo_for,
    statements,
    store_errors,
)
from opensend_milter.adapters.schema import migrations
from opensend_milter.adapters.schema.fitting import differences
from opensend_milter.adapters.schema.needs import needs
from opensend_milter.adapters.schema.roles import FOR_PEOPLE, KEY_READER, LOGIN_ROLES, OF_PROCESSES
from opensend_milter.config import Config
from opensend_milter.core.errors import ConfigError, StoreUnavailable, UsageError
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.core.model import CLIENT_ADDR
from opensend_milter.core.next_hop import LANE_FOR, LANE_RECIPIENTS

SQL = {**statements("inspection"), "search_lag": statements("filling")["lag"]}
REACHABLE = "database.reachable"
SLOW_S = 0.05
CLOCK_S, CLOCK_WRONG_S = 5.0, 120.0
LATE_S, VERY_LATE_S = 300.0, 3_600.0
FEEDBACK_LATE_S = 1_800.0
SEARCH_LATE_S = 600.0
_TRIES = 5


class Right(NamedTuple):
    """What a role may, or may not, do with a table, one column of it, or a function."""

    role: Role
    name: str
    right: str
    column: str | None = None
    """"*": any."""
    expected: bool = True

    def __str__(self) -> str:
        return " ".join([self.name, *filter(None, [(self.column or "").strip("*")]), self.right])


_RIGHTS = (
    Right("opensend_dovecot_auth", "opensend_milter.key_id(text)", "EXECUTE"),
    Right("opensend_dovecot_auth", "public.api_keys", "SELECT", column="*", expected=False),
    Right("opensend_dovecot_auth", "public.emails", "SELECT", column="*", expected=False),
    Right("opensend_milter", "public.emails", "INSERT"),
    Right("opensend_milter", "opensend_milter.submissions", "INSERT"),
    Right("opensend_milter", "opensend_milter.raw_chunks", "INSERT"),
    Right("opensend_milter", "opensend_milter.jobs", "INSERT"),
    Right("opensend_milter", "opensend_milter.refusals", "INSERT"),
    Right("opensend_milter", "public.domains", "SELECT", column="status"),
    Right("opensend_milter", "public.email_suppressions", "SELECT", column="email"),
    Right("opensend_milter", "public.api_keys", "SELECT", column="token_hash", expected=False),
    Right("opensend_milter", "opensend_milter.secrets", "SELECT", expected=False),
    Right("opensend_milter", "opensend_milter.raw_chunks", "SELECT", expected=False),
    Right("opensend_http", "public.emails", "INSERT"),
    Right("opensend_http", "opensend_milter.feedback", "INSERT"),
    Right("opensend_http", "public.api_keys", "SELECT", column="token_hash", expected=False),
    Right("opensend_worker", "public.emails", "UPDATE", column="status"),
    Right("opensend_worker", "opensend_milter.jobs", "UPDATE"),
    Right("opensend_worker", "opensend_milter.raw_chunks", "SELECT"),
    Right("opensend_worker", "public.email_events", "INSERT"),
    Right("opensend_worker", "public.api_keys", "SELECT", column="token_hash", expected=False),
)
"""What each role may, and what none may; the whole of it is in schema/roles.sql."""

_LOOKED_UP = (("api_keys", "token_hash"), ("email_suppressions", "email"), ("email_suppressions", "user_id"))
"""What each message asks OpenSend's tables for; one of an address's two will do."""


class Inspection:
    """One connection, opened when first needed: as the configured URL says, else as the worker."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._connection: Connection | None = None
        self.role = ""

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()

    def connection(self) -> Connection:
        """Return the connection; raise StoreUnavailable."""
        if self._connection is None:
            self._connection = connect_as_owner(self._config.database, application_name="opensend-doctor")
            self.role = self._connection.info.user
        return self._connection

    def _as(self, role: Role) -> Connection:
        database = self._config.database
        return connect(conninfo_for(database.url, database.password_dir, role), application_name="opensend-doctor")

    def _rows(self, name: str, /, **values: object) -> list[tuple[object, ...]]:
        """Ask; raise UsageError where this role may not."""
        connection = self.connection()
        with store_errors():
            try:
                return connection.execute(SQL[name], values).fetchall()
            except errors.InsufficientPrivilege as error:
                raise UsageError(f"{error.diag.message_primary} (as {self.role})") from error
            except (errors.UndefinedTable, errors.UndefinedFunction, errors.InvalidSchemaName) as error:
                raise UsageError(f"{error.diag.message_primary}; `opensend-milter db init` makes it") from error

    def data_directory(self) -> Path | None:
        """Return where a server on this host keeps its files, or None where that cannot be known."""
        try:
            ((name,),) = self._rows("setting", name="data_directory")
        except UsageError:
            return None
        local = self.connection().info.host.startswith("/") or self.connection().info.host in {"127.0.0.1", "::1"}
        return Path(str(name)) if local and Path(str(name)).exists() else None

    def checks(self) -> Iterator[Check]:
        """Return the checks of the database and of what waits in it."""
        yield Check(name=REACHABLE, why="without the database messages are put off (451)", look=self._reachable)
        looks: tuple[tuple[str, str, Callable[[], Seen], bool], ...] = (
            ("database.speed", "each message waits for two answers of the database", self._speed, False),
            ("database.writable", "a standby takes no message", self._writable, False),
            ("database.durable", "250 means that the message is on disk", self._durable, False),
            ("database.tables", "on tables of another shape each message is put off (451)", self._tables, False),
            ("database.migrations", "this program writes to tables of its version", self._migrations, False),
            ("database.passwords", "a process whose password is wrong answers 451 to all", self._passwords, True),
            ("database.rights", "each process may do its own work and nothing else", self._rights, True),
            ("database.roles", "a role with more power than it needs is a way around every rule", self._roles, True),
            ("database.public", "what PostgreSQL lets everybody make can fill the disk", self._public, False),
            ("database.indexes", "without them each message reads a whole table", self._indexes, False),
            ("database.clock", "expiry, limits and retries are reckoned by the database's clock", self._clock, False),
            ("database.connections", "a process that gets no connection answers 451", self._connections, False),
            ("database.limits", "a role has so many connections for all hosts together", self._limits, False),
            ("milter.client", "a key of a network, and each client's limit, need its address", self._client, False),
            ("outbox.age", "a message that is due and not taken up has no worker", self._outbox, False),
            ("outbox.leases", "messages of a worker that died wait until another takes them over", self._leases, False),
            ("outbox.uncertain", "a message whose outcome is not known waits for a person", self._uncertain, False),
            ("outbox.moved_on", "a job ends when its email was taken up without us", self._moved_on, False),
            ("outbox.feedback", "bounces and complaints count once the worker took them up", self._feedback, False),
            ("outbox.unknown", "a next hop that knows hardly anybody bounces good mail", self._unknown, False),
            ("worker.search", "what is not noted is found only while it is among the newest", self._search, False),
            ("worker.connected", "without a worker nothing is sent", self._worker, False),
        )  # fmt: skip
        for name, why, look, security in looks:
            yield Check(name=name, why=why, look=look, security=security, needs=REACHABLE)

    def _reachable(self) -> Seen:
        try:
            info = self.connection().info
        except StoreUnavailable as error:
            return problem(str(error).splitlines()[0], "systemctl status postgresql; opensend-milter check-config")
        version = info.server_version // 10_000
        if info.server_version < migrations.OLDEST_SERVER:
            return problem(f"PostgreSQL {version}: {migrations.OLDEST_SERVER // 10_000} or newer is needed")
        return good(f"PostgreSQL {version}, database {info.dbname}, as {self.role}")

    def _speed(self) -> Seen:
        taken = []
        for _ in range(_TRIES):
            began = time.monotonic()
            self._rows("nothing")
            taken.append(time.monotonic() - began)
        shown = f"an answer takes {min(taken) * 1000:.1f} ms"
        return warning(f"{shown}, over {SLOW_S * 1000:g}") if min(taken) > SLOW_S else good(shown)

    def _writable(self) -> Seen:
        ((standby, read_only),) = self._rows("writable")
        if standby:
            return problem(
                "this server is a standby", "set database.url to the primary (target_session_attrs=read-write)"
            )
        if read_only:
            return problem(
                "default_transaction_read_only is on",
                "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf();",
            )
        return good("takes writes")

    def _durable(self) -> Seen:
        off = [
            name
            for name in ("fsync", "full_page_writes", "synchronous_commit")
            if self._rows("setting", name=name) == [("off",)]
        ]
        off += [f"synchronous_commit of {role}" for (role,) in self._rows("roles_not_durable")]
        if off:
            mends = [f"ALTER SYSTEM SET {name} = 'on';" for name in off if " " not in name]
            mends += [f"ALTER ROLE {name.rpartition(' ')[2]} RESET synchronous_commit;" for name in off if " " in name]
            return warning(f"off: {', '.join(off)}: a power cut may lose what was answered 250", " ".join(mends))
        return good("a commit is on disk")

    def _tables(self) -> Seen:
        wanted = needs(profile=self._config.profile, billing=self._config.billing, administration=True)
        with store_errors():
            found = differences(self.connection(), wanted)
        if found:
            beside = self._config.profile == "opensend"
            mend = "a version of opensend-milter that knows this OpenSend" if beside else "opensend-milter db init"
            return problem("; ".join(found), mend)
        return good(f"{len(wanted)} tables are as needed")

    def _migrations(self) -> Seen:
        if self.role == STAND_IN:
            return skipped("only the owner may ask: give DATABASE_URL")
        wrong = [
            f"{one.name} is {one.state}"
            for one in migrations.status(self._config.database.url, actions=self._config.console.actions)
            if one.state != "applied"
        ]
        if wrong:
            beside = self._config.profile == "opensend"
            return problem("; ".join(wrong[:4]), "opensend-milter db migrate" if beside else "opensend-milter db init")
        return good("all are applied")

    def _passwords(self) -> Seen:
        folder = self._config.database.password_dir
        if not folder:
            return warning(
                "database.password_dir is not set: every process connects as the owner",
                "set database.password_dir, then: opensend-milter db init",
            )
        present = [role for role in FOR_PEOPLE if (folder / role).exists()]
        for role in (*OF_PROCESSES, *present):
            try:
                self._as(role).close()
            except (StoreUnavailable, ConfigError) as error:
                if isinstance(error.__cause__, PermissionError):
                    raise
                return problem(
                    f"{role}: {str(error).splitlines()[0]}", "opensend-milter db init   # beside OpenSend: db migrate"
                )
        return good(f"{len(OF_PROCESSES) + len(present)} roles can log in")

    def _rights(self) -> Seen:
        wrong = []
        acts = self._config.console.actions
        rights = (*_RIGHTS, Right("opensend_console_actor", "public.emails", "UPDATE", column="*", expected=acts))
        for one in rights:
            values = {"role": one.role, "name": one.name, "right": one.right, "column": one.column}
            try:
                ((found,),) = self._rows("has_right", **values)
            except (UsageError, StoreUnavailable) as error:
                return problem(str(error), "opensend-milter db init   # beside OpenSend: db migrate")
            if found is not one.expected:
                wrong.append(f"{one.role} {'lacks' if one.expected else 'has'} {one}")
        if wrong:
            return problem("; ".join(wrong[:4]), "opensend-milter db init   # beside OpenSend: db migrate")
        return good(f"{len(rights)} rights are as they should be")

    def _roles(self) -> Seen:
        rows = self._rows("powerful_roles", roles=[KEY_READER, *LOGIN_ROLES])
        if rows:
            names = [str(name) for (name,) in rows]
            takes = "NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
            return problem(
                f"too powerful: {', '.join(names)}", " ".join(f"ALTER ROLE {name} {takes};" for name in names)
            )
        return good("none has more power than it needs")

    def _public(self) -> Seen:
        ((temporary, large),) = self._rows("filling", roles=[KEY_READER, *LOGIN_ROLES])
        may = [what for what, found in (("temporary tables", temporary), ("large objects", large)) if found]
        if not may:
            return good("no role of ours may make temporary tables or large objects")
        shown = f"roles of ours may make {' and '.join(may)}"
        if self._config.profile == "opensend":
            return warning(f"{shown}, as everybody may here: beside OpenSend that is not ours to take")
        return warning(shown, "opensend-milter db init   # large objects: with the DATABASE_URL of a superuser")

    def _indexes(self) -> Seen:
        found = self._rows("indexes")
        valid = {str(name) for name, _, is_valid, _ in found if is_valid}
        broken = sorted(str(name) for name, _, is_valid, _ in found if not is_valid)
        if broken:
            return problem(
                f"not valid: {', '.join(broken)}", " ".join(f"REINDEX INDEX CONCURRENTLY {name};" for name in broken)
            )
        ours = migrations.our_indexes()
        missing = {name: statement for name, statement in ours.items() if name not in valid}
        if missing:
            return problem(f"missing: {', '.join(missing)}", " ".join(missing.values()))
        led = {(str(table), str(column)) for _, table, is_valid, column in found if is_valid}
        without = [f"{table} ({column})" for table, column in _LOOKED_UP[:1] if (table, column) not in led]
        if not led.intersection(_LOOKED_UP[1:]):
            without.append("email_suppressions (user_id, email)")
        if without:
            return warning(
                f"no index of {', '.join(without)}", " ".join(f"CREATE INDEX CONCURRENTLY ON {one};" for one in without)
            )
        return good(f"{len(ours)} of ours, and those of every message's questions")

    def _clock(self) -> Seen:
        before = datetime.now(UTC)
        ((theirs,),) = self._rows("clock")
        middle = before + (datetime.now(UTC) - before) / 2
        if not isinstance(theirs, datetime):
            return problem("the database has no clock")
        return judged_clock((theirs - middle).total_seconds())

    def _connections(self) -> Seen:
        ((used, most),) = self._rows("connections")
        shown = f"{used} of {most} connections in use"
        if int(str(used)) > int(str(most)) * BUSY_SHARE:
            return warning(shown, "SELECT usename, count(*) FROM pg_stat_activity GROUP BY 1 ORDER BY 2 DESC;")
        return good(shown)

    def _limits(self) -> Seen:
        return connections.seen(self._rows("role_use", roles=list(LOGIN_ROLES)), self._config)

    def _client(self) -> Seen:
        if self.role == STAND_IN:
            return skipped("only the owner may ask: give DATABASE_URL")
        rows = self._rows("client_addresses")
        if not rows:
            return skipped("no message has come by SMTP yet")
        if rows == [("",)]:
            mend = "opensend-milter install --apply   # another mail server than Postfix: docs/mtas.md, Macros"
            return problem(f"the mail server sends no macro {CLIENT_ADDR} at MAIL", mend)
        return good(f"the last message by SMTP came with {CLIENT_ADDR}")

    def _jobs(self) -> tuple[int, float, int, int]:
        ((waiting, late_s, overdue, uncertain),) = self._rows("jobs")
        return int(str(waiting)), float(str(late_s)), int(str(overdue)), int(str(uncertain))

    def _outbox(self) -> Seen:
        waiting, late_s, *_ = self._jobs()
        shown = f"{waiting} due, the oldest for {late_s:.0f} s"
        status = "systemctl status opensend-worker; journalctl -u opensend-worker -n 20"
        if late_s > VERY_LATE_S:
            return problem(shown, status)
        return warning(shown, status) if late_s > LATE_S else good(shown)

    def oldest_s(self) -> float:
        """Return for how long the oldest message has been due."""
        return self._jobs()[1]

    def _leases(self) -> Seen:
        _, _, overdue, _ = self._jobs()
        if overdue:
            return problem(
                f"{overdue} message(s) are in the hands of a worker that is gone", "systemctl restart opensend-worker"
            )
        return good("no message is in the hands of a worker that is gone")

    def _uncertain(self) -> Seen:
        *_, uncertain = self._jobs()
        if uncertain:
            return warning(
                f"{uncertain} message(s) may be out or not",
                "opensend-milter email list --status processing   # then for each: email retry | mark-sent | fail ID",
            )
        return good("none")

    def _moved_on(self) -> Seen:
        if self._config.profile != "opensend":
            return skipped("our own worker takes them up")
        ((count,),) = self._rows("moved_on")
        shown = f"{count} job(s) wait though their emails do not"
        return warning(shown, "systemctl status opensend-worker   # it ends them") if count else good(shown)

    def _feedback(self) -> Seen:
        ((waiting, late_s),) = self._rows("reports")
        shown = f"{waiting} report(s), the oldest {float(str(late_s)):.0f} s old"
        late = float(str(late_s)) > FEEDBACK_LATE_S
        return warning(shown, "journalctl -u opensend-worker -n 20") if late else good(shown)

    def _unknown(self) -> Seen:
        if self._config.profile == "opensend":
            return skipped("OpenSend's ingester delivers")
        return lanes.seen(self._rows("lane_answers", most=LANE_RECIPIENTS, age=LANE_FOR))

    def _search(self) -> Seen:
        ((late_s,),) = self._rows("search_lag")
        shown = f"the message that is noted next has waited {float(str(late_s)):.0f} s"
        mend = "journalctl -u opensend-worker -n 20   # or at full speed: opensend-milter db fill-search"
        return warning(shown, mend) if float(str(late_s)) > SEARCH_LATE_S else good(shown)

    def _worker(self) -> Seen:
        ((connected,),) = self._rows("workers")
        if not connected:
            return problem("no worker is connected to the database", "systemctl start opensend-worker")
        return good(f"{connected} connection(s)")


def judged_clock(difference_s: float) -> Seen:
    """Judge how far the database's clock is from ours."""
    shown = f"the database is {abs(difference_s):.1f} s {'ahead' if difference_s > 0 else 'behind'}"
    if abs(difference_s) > CLOCK_WRONG_S:
        return problem(shown, "timedatectl set-ntp true")
    return warning(shown, "timedatectl set-ntp true") if abs(difference_s) > CLOCK_S else good(shown)
