"""The commands that stay: serve, worker, http, console, auth-gate."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from opensend_milter import app
from opensend_milter.cli.exits import exits
from opensend_milter.config import Log, is_configured, load, path_in_force
from opensend_milter.core.errors import ConfigError
from opensend_milter.servers.reloading import write_log_as
from opensend_milter.servers.supervisor import notify

log = logging.getLogger(__name__)


def serve(config: Path | None = None) -> None:
    """Answer Postfix: judge each message, take it or say why not."""
    with exits():
        _begin(config)
        app.serve(config)


def worker(config: Path | None = None) -> None:
    """Deliver what was taken, or announce it to a queue."""
    with exits():
        _begin(config)
        app.work(config, ready=_ready)


def http(config: Path | None = None) -> None:
    """Answer HTTP: messages as JSON, reports of Amazon SNS, links."""
    with exits():
        _begin(config)
        app.http(config, ready=_ready)


def console(config: Path | None = None) -> None:
    """Show people in a browser what became of messages."""
    with exits():
        _begin(config)
        app.console(config, ready=_ready)


def auth_gate(config: Path | None = None) -> None:
    """Stand before Dovecot: an outage becomes 454, never 535."""
    with exits():
        _begin(config)
        app.guard(config, ready=_ready)


_ready = partial(notify, "READY=1")


def _begin(path: Path | None) -> None:
    if not is_configured(path):
        raise ConfigError(
            f"nothing is configured: there is no {path_in_force(path)}, and no variable such as DATABASE_URL is set; "
            "docs/opensend-milter.example.yaml has every key with its default"
        )
    # A reload that comes before we can follow it waits, instead of ending us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    _log(load(path).log)


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
