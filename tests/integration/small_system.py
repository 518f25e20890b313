"""The files of a host with a Postfix under one directory, and the plan to install there; run as a program it dies."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from opensend_milter.config import Config, Database, Http, Smtp
from opensend_milter.host.installing import apply as install
from opensend_milter.host.installing.blueprint import Blueprint, Choice, Host
from opensend_milter.host.installing.plan import Command, Plan, Root, Step
from opensend_milter.host.rendering.certificates import CertificatePair
from tests.integration.copied_system import State, state_of

PAIR = CertificatePair(
    certificate=Path("/etc/ssl/mail/fullchain.pem"),
    key=Path("/etc/ssl/mail/privkey.pem"),
    expires_at=datetime.max.replace(tzinfo=UTC),
)
CONFIG = Config(
    database=Database(url="postgresql://db.example.org/mail"),
    smtp=Smtp(host="127.0.0.1", hostname="relay.example.org"),
    http=Http(port=8026),
)
ALL_AT_ONCE = Choice(mode="services", dovecot="existing")
LEFT = {f"etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")}


def small_system(directory: Path) -> Path:
    """Make it: accounts, a Postfix, a Dovecot, nothing of ours."""
    root = directory / "host"
    for place in ("etc/systemd/system/multi-user.target.wants", "etc/dovecot/conf.d", "var/lib", "var/spool", "run"):
        (root / place).mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow"):
        shutil.copy2(Path("/etc") / name, root / "etc" / name)
        # As every host that ever had an account made.
        shutil.copy2(Path("/etc") / name, root / f"etc/{name}-")
    (root / "etc/postfix").mkdir()
    (root / "etc/postfix/main.cf").write_text("compatibility_level = 3.6\nmyhostname = old.example.org\n")
    shutil.copy2("/etc/postfix/master.cf", root / "etc/postfix/master.cf")
    # What was written within the last second Postfix takes for half written, and waits.
    os.utime(root / "etc/postfix/main.cf", (0, 0))
    (root / "etc/dovecot/dovecot.conf").write_text("!include conf.d/*.conf\n")
    return root


def plan_for(root: Path, choice: Choice = ALL_AT_ONCE, config: Config = CONFIG, edition: str = "1") -> Plan:
    """Return the plan for it."""
    host = Host(root=Root(root), hostname="relay.example.org", dovecot_version="2.3", certificate=PAIR)
    return Blueprint(config, b"smtp: {}\n", choice, host).plan(edition=edition)


def with_step(plan: Plan, place: int, step: Step) -> Plan:
    """Return the plan with one more step."""
    return replace(plan, steps=(*plan.steps[:place], step, *plan.steps[place:]))


def tree(root: Path) -> dict[str, State]:
    """Return all of it: content, mode, owner, time."""
    return {str(path.relative_to(root)): state_of(path) for path in (root, *root.rglob("*"))}


def difference(before: dict[str, State], after: dict[str, State]) -> set[str]:
    """Name what differs."""
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def main() -> None:
    """Apply with a step in the middle that kills us; the arguments are the root and its place."""
    killing = Command(name="killing", why="", run=(("sh", "-c", "kill -9 $PPID"),))
    install.apply(with_step(plan_for(Path(sys.argv[1])), int(sys.argv[2]), killing), lambda _: None)


if __name__ == "__main__":
    main()
