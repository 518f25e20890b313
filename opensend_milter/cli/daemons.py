"""The commands that stay: serve, worker, http, auth-gate."""

from __future__ import annotations

import logging
import sys
import threading
from functools import partial

from opensend_milter import app
from opensend_milter.cli.output import ConfigPath, exits
from opensend_milter.config import Log, load
from opensend_milter.core.logline import formatter
from opensend_milter.servers import auth_gate as gate
from opensend_milter.servers.supervisor import notify

log = logging.getLogger(__name__)


def serve(config: ConfigPath = None) -> None:
    """Answer Postfix: judge each message, record it, take it or say why not."""
    with exits():
        _log(load(config).log)
        app.serve(config)


def worker(config: ConfigPath = None) -> None:
    """Deliver what was taken; announce jobs where there is a queue."""
    with exits():
        _log(load(config).log)
        app.work(config, ready=_ready)


def http(config: ConfigPath = None) -> None:
    """Answer HTTP: what Amazon SNS reports, links in messages, one-click unsubscribing."""
    with exits():
        _log(load(config).log)
        app.http(config, ready=_ready)


def auth_gate(config: ConfigPath = None) -> None:
    """Stand between Postfix and Dovecot: a database outage becomes 454, never 535."""
    with exits():
        settings = load(config)
        _log(settings.log)
        gate.run(settings.auth, ready=_ready, failed_per_minute=settings.limits.failed_per_minute)


_ready = partial(notify, "READY=1")


def _log(settings: Log) -> None:
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(formatter(settings.format))
    logging.basicConfig(handlers=[to_stderr], level=settings.level.upper())
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
