"""Our services in a Postfix that is there already: entries of its master.cf, written by postconf and nothing else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.errors import ConfigError
from opensend_milter.host import requirements
from opensend_milter.host.installing.plan import Command, Root, program
from opensend_milter.host.rendering import postfix_files
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from opensend_milter.host.rendering.postfix_files import COLUMNS, Service, pairs, settings

CLEANUP = "opensend-cleanup"
EXISTING = Path("/etc/postfix")
# What belongs to the instance as a whole, and is the existing one's business.
_OF_THE_INSTANCE = frozenset({
    "alias_database", "alias_maps", "anvil_rate_time_unit", "authorized_flush_users", "authorized_mailq_users",
    "authorized_submit_users", "bounce_queue_lifetime", "compatibility_level", "config_directory", "data_directory",
    "default_transport", "disable_dns_lookups", "inet_protocols", "local_transport", "mailbox_size_limit",
    "maillog_file", "maillog_file_prefixes", "queue_directory", "relay_transport", "relayhost",
    "sender_dependent_default_transport_maps", "sender_dependent_relayhost_maps", "service_throttle_time",
    "smtp_dns_support_level", "syslog_name", "transport_maps", "virtual_mailbox_limit", "virtual_transport",
})  # fmt: skip
_OF_CLEANUP = frozenset({
    "always_add_missing_headers", "always_bcc", "append_dot_mydomain", "body_checks", "canonical_maps",
    "enable_long_queue_ids", "enable_original_recipient", "header_checks", "header_size_limit", "in_flow_delay",
    "local_header_rewrite_clients", "masquerade_domains", "message_drop_headers", "message_reject_characters",
    "message_strip_characters", "mime_header_checks", "nested_header_checks", "non_smtpd_milters",
    "recipient_bcc_maps", "recipient_canonical_maps", "remote_header_rewrite_domain", "sender_bcc_maps",
    "sender_canonical_maps", "smtputf8_enable", "soft_bounce", "virtual_alias_domains", "virtual_alias_maps",
})  # fmt: skip
# What our own instance leaves at its default and another main.cf may set: it must not reach our services.
_RESET = frozenset({"cleanup_replace_stray_cr_lf", "delay_warning_time", "smtpd_client_port_logging"})
_RESET_WHERE_SET = re.compile("smtpd_|milter_|tls_")


def services(config: Config, site: PostfixSite, config_dir: Path) -> list[Service]:
    """Return our entries, with all that must not come from the main.cf of this directory."""
    rendered = render_postfix(config, site)
    main = settings(rendered["main.cf"])
    ours = {name: value for name, value in main.items() if name not in _OF_THE_INSTANCE}
    resets = _defaults(config_dir, _to_reset(config_dir, ours))
    found = []
    for service in postfix_files.services(rendered["master.cf"]):
        if service.kind == "inet":
            overrides = {**resets, **ours, **service.overrides, "cleanup_service_name": CLEANUP}
            found.append(Service(columns=service.columns, overrides=overrides))
        elif service.name == "cleanup":
            # Also what our main.cf has for all services: syslog's name above all.
            kept = {name: value for name, value in {**resets, **ours}.items() if _is_cleanup_s(name)}
            overrides = {"syslog_name": site.syslog_name, **kept, **service.overrides}
            found.append(Service(columns=(CLEANUP, *service.columns[1:]), overrides=overrides))
    return found


def step(found: Sequence[Service], root: Root, config_dir: Path = EXISTING) -> Command:
    """Return the step that puts the entries there."""
    place = root.at(config_dir)
    postconf = (program("postconf"), "-c", str(place))
    # postconf appends: to a last line without its end our first entry would become the end of theirs.
    last_line = ("sh", "-c", '[ -z "$(tail -c 1 "$0")" ] || echo >>"$0"', str(place / "master.cf"))
    return Command(
        name=f"services in {config_dir}/master.cf",
        why="Postfix listens on our ports, with our rules and our milter",
        run=(
            last_line,
            (*postconf, "-M", *(f"{service.key}={service.line()}" for service in found)),
        ),
        back=((*postconf, "-MX", *(service.key for service in found)),),
        touches=(config_dir / "master.cf",),
        done=lambda: all(_is_there(service, place) for service in found),
        diff="\n".join(service.text() for service in found),
    )


def taken(found: Sequence[Service], config_dir: Path, ours: str) -> Iterator[str]:
    """Name the entries that are there already and are somebody else's."""
    for service in found:
        there = _overrides(service.key, config_dir)
        if there is not None and not there.get("syslog_name", "").startswith(ours):
            yield service.name


def listening(config_dir: Path) -> list[str]:
    """Return the names of the entries that listen on the network, such as smtp or 127.0.0.1:587."""
    return [line.split()[0] for line in _postconf(config_dir, "-M").splitlines() if line.split()[1:2] == ["inet"]]


def _is_there(service: Service, config_dir: Path) -> bool:
    entry = _postconf(config_dir, "-M", service.key).split()
    there = _overrides(service.key, config_dir)
    return tuple(entry[:COLUMNS]) == service.columns and there == dict(service.overrides)


def _overrides(key: str, config_dir: Path) -> Mapping[str, str] | None:
    if not _postconf(config_dir, "-M", key).strip():
        return None
    lines = _postconf(config_dir, "-P", key).splitlines()
    return pairs(line.removeprefix(f"{key}/") for line in lines)


def _to_reset(config_dir: Path, ours: Collection[str]) -> list[str]:
    where_set = pairs(_postconf(config_dir, "-n").splitlines())
    found = _RESET | {name for name in where_set if _RESET_WHERE_SET.match(name)}
    return sorted(found - set(ours) - _OF_THE_INSTANCE)


def _defaults(config_dir: Path, names: Sequence[str]) -> Mapping[str, str]:
    # A name that this Postfix does not know is a warning, and no line.
    return pairs(_postconf(config_dir, "-d", *names).splitlines())


def _is_cleanup_s(name: str) -> bool:
    return name in _OF_CLEANUP or name.startswith("milter_") or (name in _RESET and not name.startswith("smtpd_"))


def _postconf(config_dir: Path, *arguments: str) -> str:
    argv = [program("postconf"), "-c", str(config_dir), *arguments]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=requirements.environment({}))
    if done.returncode:
        raise ConfigError(f"{config_dir}: postconf: {done.stderr.strip()}")
    return done.stdout
