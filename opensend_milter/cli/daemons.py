"""The commands that stay: serve, worker, http, auth-gate."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from opensend_milter import app
from opensend_milter.cli.output import ConfigPath, exits
from opensend_milter.config import Config, Log, load
from opensend_milter.config.changes import Reads
from opensend_milter.servers import auth_gate as gate
from opensend_milter.servers.reloading import Reloading, write_log_as
from opensend_milter.servers.supervisor import notify

log = logging.getLogger(__name__)


GATE_READS = Reads(
    live=frozenset({"auth.timeout_s", "limits.failed_per_minute"}), at_start=frozenset({"auth", "metrics.auth_port"})
)


def serve(config: ConfigPath = None) -> None:
    """Answer Postfix: judge each message, record it, take it or say why not."""
    with exits():
        _begin(config)
        app.serve(config)


def worker(config: ConfigPath = None) -> None:
    """Deliver what was taken; announce jobs where there is a queue."""
    with exits():
        _begin(config)
        app.work(config, ready=_ready)


def http(config: ConfigPath = None) -> None:
    """Answer HTTP: messages as JSON, what Amazon SNS reports, links in messages."""
    with exits():
        _begin(config)
        app.http(config, ready=_ready)


def auth_gate(config: ConfigPath = None) -> None:
    """Stand between Postfix and Dovecot: a database outage becomes 454, never 535."""
    with exits():
        settings = _begin(config)
        reloading = Reloading(config, settings, GATE_READS)

        def reload(running: gate.Gate) -> None:
            reloading.on_hangup(
                lambda new: running.set_limits(new.auth.timeout_s, new.limits.failed_per_minute),
            )

        with app.logins_shown(settings.metrics.auth_port):
            gate.run(settings.auth, ready=_ready, failed_per_minute=settings.limits.failed_per_minute, reload=reload)


_ready = partial(notify, "READY=1")


def _begin(path: Path | None) -> Config:
    # A reload that comes before we can follow it waits, instead of ending us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    config = load(path)
    _log(config.log)
    return config


def _log(settings: Log) -> None:
    logging.basicConfig(handlers=[logging.StreamHandler(sys.stderr)])
    write_log_as(settings)
    # libmilter's threads are not Python's: asking each for a name makes an object that is never freed.
    logging.logThreads = False
    for noisy in ("botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Whatever else Python would write there has the same shape.
    logging.captureWarnings(capture=True)
    threading.excepthook = _thread_ended


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is not SystemExit:
        log.critical("%s ended", ended.thread.name if ended.thread else "a thread", exc_info=ended.exc_value)
