"""What is examined on a host besides the database, the queue and DNS."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from opensend_milter.config import Config, Tls, load
from opensend_milter.core.errors import OpensendError
from opensend_milter.core.findings import Check, Seen, good, warning
from opensend_milter.host.examining import (
    console as checks_console,
    dovecot as checks_dovecot,
    machine as checks_machine,
    postfix as checks_postfix,
    smtp as checks_smtp,
    sockets as checks_sockets,
    tls as checks_tls,
)
from opensend_milter.host.examining.postconf import PostfixUnreadable, read_instance
from opensend_milter.host.examining.postfix import Read
from opensend_milter.host.examining.smtp import MadeKey
from opensend_milter.host.examining.smtp_ports import doors_of
from opensend_milter.host.rendering.acme import acme_entry
from opensend_milter.host.rendering.certificates import ACME_FOLDER

QUEUE_DIR = Path("/var/spool/postfix-opensend")
SESSIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where things are on this host, and what the examination may use."""

    config: Config
    config_path: Path
    postfix_dir: Path
    dovecot_dir: Path
    certificate_dir: Path = ACME_FOLDER
    key_file: Path | None = None
    made_key: MadeKey | None = None
    now: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))


def host_checks(site: Site) -> Iterator[Check]:
    """Return the checks of this host in the order they are shown."""
    read = cache(partial(read_instance, site.postfix_dir))
    config = site.config
    if config.tls.acme_json:
        yield Check(
            name="tls.acme",
            why="Traefik renews the certificate in its own file; Postfix reads the copy",
            look=partial(_is_copied, site),
        )
        # Only Postfix's copy is looked at from here on: an examination writes nothing.
        config = dataclasses.replace(config, tls=Tls(folder=site.certificate_dir))
    yield from checks_tls.checks(config, site.now)
    if config.auth.protocol == "dovecot":  # else there is another mail server
        yield from checks_postfix.checks(config, site.postfix_dir, read)
    yield from checks_dovecot.checks(_written(site), site.dovecot_dir)
    yield from checks_sockets.checks(config)
    yield from checks_smtp.checks(
        config,
        proxied=lambda: _proxied(config, read),
        key_file=site.key_file,
        made_key=site.made_key,
    )
    yield from checks_machine.checks(
        config,
        site.config_path,
        queue_dir=partial(_queue_dir, read),
        sessions=SESSIONS * len(doors_of(config)),
    )
    yield from checks_console.checks(config)


def _written(site: Site) -> list[Config]:
    """Return the configuration as it is here, and as it is without this shell's environment."""
    try:
        return [site.config, load(site.config_path, {})]
    except OpensendError:
        return [site.config]


def _queue_dir(read: Read) -> Path:
    try:
        return read().path("queue_directory")
    except PostfixUnreadable:
        return QUEUE_DIR


def _proxied(config: Config, read: Read) -> frozenset[int]:
    try:
        instance = read()
    except PostfixUnreadable:
        return frozenset()
    doors = instance.doors(config.smtp)
    return frozenset(door.port for door in doors if instance.value("smtpd_upstream_proxy_protocol", door))


def _is_copied(site: Site) -> Seen:
    path = site.config.tls.acme_json
    entry = acme_entry(path, site.config.smtp.hostname) if path else None
    if entry is None:
        return warning(f"{path} has no certificate for {site.config.smtp.hostname}")
    if not entry.is_in(site.certificate_dir):
        return warning(f"{site.certificate_dir} holds another certificate", "opensend-milter install --apply")
    return good(f"{site.certificate_dir} holds the one of {path}")
