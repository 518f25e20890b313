"""The commands that stay: serve, worker, http, auth-gate."""

from __future__ import annotations

import logging
import sys
from functools import partial

from opensend_milter import app
from opensend_milter.cli.output import ConfigPath, exits
from opensend_milter.config import load
from opensend_milter.servers import auth_gate as gate
from opensend_milter.servers.supervisor import notify


def serve(config: ConfigPath = None) -> None:
    """Answer Postfix: judge each message, record it, take it or say why not."""
    with exits():
        _log(load(config).log.level)
        app.serve(config)


def worker(config: ConfigPath = None) -> None:
    """Deliver what was taken; announce jobs where there is a queue."""
    with exits():
        _log(load(config).log.level)
        app.work(config, ready=_ready)


def http(config: ConfigPath = None) -> None:
    """Answer HTTP: what Amazon SNS reports, links in messages, one-click unsubscribing."""
    with exits():
        _log(load(config).log.level)
        app.http(config, ready=_ready)


def auth_gate(config: ConfigPath = None) -> None:
    """Stand between Postfix and Dovecot: a database outage becomes 454, never 535."""
    with exits():
        settings = load(config)
        _log(settings.log.level)
        gate.run(settings.auth, ready=_ready)


_ready = partial(notify, "READY=1")


def _log(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s",
    )
    # libmilter's threads are not Python's: asking each for a name makes an object that is never freed.
    logging.logThreads = False
    for noisy in ("botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
