"""The auth gate: a Config in, a gate between Postfix and Dovecot that follows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from opensend_milter.adapters import prometheus
from opensend_milter.config import load
from opensend_milter.config.changes import Reads
from opensend_milter.core import counting
from opensend_milter.servers import auth_gate, metrics_page
from opensend_milter.servers.reloading import Reloading

READS = Reads(
    live=frozenset({"auth.timeout_s", "limits.failed_per_minute"}), at_start=frozenset({"auth", "metrics.auth_port"})
)


def guard(path: Path | None, ready: Callable[[], None]) -> None:
    """Stand between Postfix and Dovecot until SIGTERM."""
    config = load(path)
    reloading = Reloading(path, config, READS)

    def reload(running: auth_gate.Gate) -> None:
        reloading.on_hangup(lambda new: running.set_limits(new.auth.timeout_s, new.limits.failed_per_minute))

    with _logins_shown(config.metrics.auth_port):
        auth_gate.run(config.auth, ready=ready, failed_per_minute=config.limits.failed_per_minute, reload=reload)


def _logins_shown(port: int) -> AbstractContextManager[None]:
    """Show what the gate of this process counts; with port 0 count nothing."""
    if not port:
        return nullcontext()
    return metrics_page.shown(port, prometheus.alone(counting.AT_AUTH), key="metrics.auth_port")
