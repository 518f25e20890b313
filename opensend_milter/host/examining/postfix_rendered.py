"""What Postfix was given, held to what it would be given now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.host.examining.postconf import Instance
from opensend_milter.host.installing import extra_services
from opensend_milter.host.rendering.certificates import find_certificate
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from opensend_milter.host.rendering.postfix_files import PROCESSES, Service, services, settings


def is_shared(config: Config, instance: Instance) -> bool:
    """Tell whether our ports are services of an instance that has others too, and a life of its own."""
    doors = instance.doors(config.smtp)
    return any(door.overrides.get("cleanup_service_name") == extra_services.CLEANUP for door in doors)


def words(value: str) -> str:
    """Return a value as Postfix reads it: a comma is white space, and how much there is does not matter."""
    return " ".join(re.split(r"[\s,]+", value.strip(" ,")))


def differences(config: Config, instance: Instance) -> list[str]:
    """Name each parameter that is another, lacks or is too many, as postconf names it: with its service, or alone."""
    site = _site(config, instance)
    if is_shared(config, instance):
        ours = extra_services.services(config, site, instance.directory)
        keys = {service.key for service in ours}
        wanted, found = _named({}, ours), _named({}, (one for one in instance.services if one.key in keys))
    else:
        rendered = render_postfix(config, site)
        wanted = _named(settings(rendered["main.cf"]), services(rendered["master.cf"]))
        found = _named(instance.given, instance.services)
    # Where a whole service lacks, or is too many, its parameters are not news.
    whole = {name for name in wanted.keys() ^ found.keys() if name.count("/") == 1}
    differing = (name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return sorted(name for name in differing if name.rpartition("/")[0] not in whole)


def _site(config: Config, instance: Instance) -> PostfixSite:
    """Take from what there is all that the configuration does not say."""
    door = next(iter(instance.doors(config.smtp)), None)
    cleanup = instance.cleanup_of(door) if door else None
    log_file = instance.values.get("maillog_file", "")
    return PostfixSite(
        config_dir=instance.path("config_directory"),
        queue_dir=instance.path("queue_directory"),
        data_dir=instance.path("data_directory"),
        log_file=Path(log_file) if log_file else None,
        certificate=find_certificate(config.tls, config.smtp.hostname),
        hostname=instance.value("myhostname", door) or "",
        syslog_name=instance.value("syslog_name", cleanup) or "",
    )


def _named(main: Mapping[str, str], found: Iterable[Service]) -> Mapping[str, str]:
    """Return parameters and services by their names; how many processes a port has is a site's own."""
    named = {name: words(value) for name, value in main.items()}
    for service in found:
        columns = list(service.columns)
        if service.kind == "inet":
            columns[PROCESSES] = ""
        named[service.key] = " ".join((*columns, service.arguments))
        named |= {f"{service.key}/{name}": words(value) for name, value in service.overrides.items()}
    return named
