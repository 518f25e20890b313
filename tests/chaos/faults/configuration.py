"""What administrators and their tools do while mail flows: reloads, mistakes, migrations, keys, lost files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.acceptance.submitting import Account, revoke
from tests.chaos.faults.harm import Harm, state, struck
from tests.chaos.faults.processes import send
from tests.chaos.stand import Stand
from tests.waiting import patience_s

RELOADED = ("serve", "http", "worker", "auth-gate")
STORM, STORM_PAUSE_S = 10, 0.3
KEYS = 20
SOCKETS = {"serve": "milter.sock", "auth-gate": "auth.sock", "dovecot": "dovecot-auth.sock"}

BLIND = ("dovecot", "auth-gate")
"""Who does not see that his socket has gone: somebody has to start him anew."""


def storm(*names: str, changing: bool = False) -> Harm:
    """Reload many times within seconds, as several tools do at once."""

    def blow(stand: Stand, _: Random) -> None:
        for number in range(STORM):
            if changing:
                stand.configure(
                    {"milter": {"gather_window_ms": 2.0 + number % 2}, "http": {"max_bulk_messages": 100 + number % 2}}
                )
            for name in names:
                stand.signal(name, signal.SIGHUP)
            time.sleep(STORM_PAUSE_S)

    return struck(blow)


@contextmanager
def broken(stand: Stand) -> Iterator[None]:
    """Save a file with an error, and reload."""
    before = stand.config.read_text()
    stand.config.write_text(f"{before}\nmilter: [this is no configuration\n")
    for name in RELOADED:
        stand.signal(name, signal.SIGHUP)
    try:
        yield
    finally:
        stand.config.write_text(before)
        for name in RELOADED:
            stand.signal(name, signal.SIGHUP)


def migrated(stand: Stand, _: Random) -> None:
    """Run what an upgrade runs; passwords, roles and rights are set anew."""
    command = [sys.executable, "-m", "opensend_milter", "db", "init", "--config", str(stand.config)]
    environment = {**os.environ, "DATABASE_URL": stand.sandbox["SANDBOX_DATABASE_URL"]}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=patience_s())
    assert done.returncode == 0, done.stderr


def keys_made_and_deleted(stand: Stand, _: Random) -> None:
    """Let others' keys come and go, as a dashboard does."""
    account = Account.make(stand.sandbox)
    for _number in range(KEYS):
        revoke(stand.sandbox, account.key())


def socket_removed(name: str) -> Harm:
    """Remove a socket as a careless cleaner does."""

    @contextmanager
    def change(stand: Stand) -> Iterator[None]:
        (stand.directory / "run" / SOCKETS[name]).unlink(missing_ok=True)
        yield
        if name in BLIND:
            send(stand.pid(name), signal.SIGTERM)

    return state(change)


def postfix_reloaded(stand: Stand, _: Random) -> None:
    stand.signal("postfix", signal.SIGHUP)


FAULTS: dict[str, Harm] = {
    "reload-storm-serve": storm("serve"),
    "reload-storm-http": storm("http"),
    "reload-storm-all": storm(*RELOADED),
    "reload-storm-changing": storm("serve", "http", changing=True),
    "postfix-reloaded": struck(postfix_reloaded),
    "configuration-broken": state(broken),
    "migrated": struck(migrated),
    "keys-made-and-deleted": struck(keys_made_and_deleted),
    **{f"socket-removed-{name}": socket_removed(name) for name in SOCKETS},
}
