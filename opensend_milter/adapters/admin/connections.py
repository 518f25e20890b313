"""How many connections our processes hold as they are configured, and how many their roles and the server let them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opensend_milter.adapters.postgres.link import Role
from opensend_milter.config import Config
from opensend_milter.core.findings import Seen, good, problem, warning

BUSY_SHARE = 0.85
UNLIMITED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleUse:
    """What a role has of the server's connections, and may come to want."""

    role: str
    limit: int
    used: int
    wanted: int

    @property
    def is_too_few(self) -> bool:
        """Tell whether a process goes without, now or when all do what they are configured for."""
        return self.limit != UNLIMITED and (self.used >= self.limit or self.wanted > self.limit)

    @property
    def is_busy(self) -> bool:
        """Tell whether more is in use than we can account for."""
        return self.limit != UNLIMITED and self.used > self.limit * BUSY_SHARE

    @property
    def mend(self) -> str:
        """Return the statement that gives it more."""
        return f"ALTER ROLE {self.role} CONNECTION LIMIT {self.wanted if self.wanted > self.limit else self.limit * 2};"

    def __str__(self) -> str:
        return f"{self.role} {self.used} of {'any number' if self.limit == UNLIMITED else self.limit}"


def needed(config: Config, cores: int | None = None) -> Mapping[Role, int]:
    """Return how many the processes of one host hold at most: two lanes and a limiter a process, and so on."""
    # Housekeeping, spellings, and the commands of both timers.
    worker = 4 + bool(config.queue.url) + bool(config.metrics.worker_port)
    if config.profile == "standalone":
        # Leases, feedback, webhooks and, at the start, the secret.
        worker += config.delivery.concurrency + 4 + bool(config.feedback.queue_url)
    return {
        "opensend_dovecot_auth": 5,
        # For a moment those of before a restart or a change are there too.
        "opensend_milter": config.milter.children(cores) * 3 * 2,
        "opensend_worker": worker,
        "opensend_http": 8 + 1 + 1 + 2 * 2,
        # Of commands, each for a moment.
        "opensend_reader": 2,
        "opensend_body_reader": 1 + config.console.is_on,
        "opensend_console": 4 * config.console.is_on,
        "opensend_console_actor": int(config.console.is_on and config.console.actions),
    }


def seen(rows: Sequence[Sequence[object]], config: Config) -> Seen:
    """Judge what `role_use` of inspection.sql answers."""
    wanted: Mapping[str, int] = {str(role): number for role, number in needed(config).items()}
    roles = []
    for role, limit, used, hosts, _ in rows:
        more = wanted[str(role)] * max(int(str(hosts)), 1)
        roles.append(RoleUse(role=str(role), limit=int(str(limit)), used=int(str(used)), wanted=more))
    return judged(roles, int(str(rows[0][4])) if rows else 0)


def judged(roles: Sequence[RoleUse], most: int) -> Seen:
    """Judge whether each role, and the server, has room for what is configured on all hosts."""
    too_few, busy = [one for one in roles if one.is_too_few], [one for one in roles if one.is_busy]
    if too_few:
        text = ", ".join(f"{one}, and {one.wanted} may be wanted" for one in too_few)
        return problem(f"too few: {text}", "\n".join(one.mend for one in too_few))
    if busy:
        return warning(f"nearly all in use: {', '.join(map(str, busy))}", "\n".join(one.mend for one in busy))
    wanted = sum(one.wanted for one in roles)
    if wanted > most:
        mend = f"ALTER SYSTEM SET max_connections = {wanted * 2};   # then restart PostgreSQL"
        return warning(f"our processes may want {wanted} connections, the server has {most} in all", mend)
    return good(f"{', '.join(map(str, roles))}; {wanted} may be wanted of the server's {most}")
