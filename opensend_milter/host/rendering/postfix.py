"""Our Postfix instance: main.cf and master.cf from the configuration and a place to put them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from opensend_milter.config import Config, check_front_door
from opensend_milter.host.rendering import templates
from opensend_milter.host.rendering.certificates import CertificatePair
from opensend_milter.host.rendering.postfix_files import settings

SMTPD_PROCESSES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PostfixSite:
    """What the configuration does not say: where the instance lives."""

    config_dir: Path
    queue_dir: Path
    data_dir: Path
    log_file: Path | None
    """None: syslog."""
    certificate: CertificatePair | None
    hostname: str
    """Used where smtp.hostname is empty."""
    syslog_name: str = "postfix-opensend"
    smtpd_processes: int = SMTPD_PROCESSES


def client_connections(config: Config, processes: int = SMTPD_PROCESSES) -> int:
    """Return how many connections one client address may hold at a port with so many processes."""
    return max(1, processes * config.smtp.client_share_percent // 100)


@cache
def pinned() -> Mapping[str, str]:
    """Return what main.cf says on every host, whatever its configuration."""
    main = settings(templates.read("postfix", "main.cf.in"))
    return {name: value for name, value in main.items() if "@" not in value}


def render_postfix(config: Config, site: PostfixSite) -> Mapping[str, str]:
    """Return file names and their content; raise ConfigError for what cannot be written."""
    if not site.certificate:
        check_front_door(config)
    main = templates.render(templates.read("postfix", "main.cf.in"), _main_values(config, site))
    master = templates.render(templates.read("postfix", "master.cf.in"), _master_values(config, site))
    return {"main.cf": main, "master.cf": master}


def _main_values(config: Config, site: PostfixSite) -> Mapping[str, templates.Value]:
    pair = site.certificate
    return {
        "CONFIG_DIR": site.config_dir,
        "QUEUE_DIR": site.queue_dir,
        "DATA_DIR": site.data_dir,
        "SYSLOG_NAME": site.syslog_name,
        "LOG_FILE": site.log_file,
        "LOG_DIR": site.log_file.parent if site.log_file else None,
        "LOG_PATIENCE": "1h" if site.log_file else None,
        "HOSTNAME": config.smtp.hostname or site.hostname,
        "INET_PROTOCOLS": _protocols(config.smtp.host),
        "TLS_LEVEL": "may" if pair else "none",
        "TLS_AUTH_ONLY": "no" if config.smtp.plaintext_auth else "yes",
        "TLS_KEY": pair.key if pair else None,
        "TLS_CERTIFICATE": pair.certificate if pair else None,
        "AUTH_SOCKET": config.auth.socket,
        "MESSAGE_SIZE_LIMIT": config.size.max_message_bytes,
        "RECIPIENT_LIMIT": config.size.max_recipients,
        # It says who the client is: who may connect is for the firewall, or systemd, to say.
        "PROXY_PROTOCOL": "haproxy" if config.smtp.proxies else None,
        "CLIENT_CONNECTIONS": client_connections(config, site.smtpd_processes),
        "LOGINS_PER_MINUTE": config.smtp.client_logins_per_minute,
        "MESSAGES_PER_MINUTE": config.smtp.client_messages_per_minute,
        "MILTER_SOCKET": config.milter.socket,
    }


def _master_values(config: Config, site: PostfixSite) -> Mapping[str, templates.Value]:
    smtp = config.smtp
    return {
        "RELAY": _listener(smtp.host, smtp.relay_port),
        "SUBMISSION": _listener(smtp.host, smtp.submission_port),
        "SMTPS": _listener(smtp.host, smtp.smtps_port) if site.certificate else None,
        "SMTPD_PROCESSES": site.smtpd_processes,
        "SYSLOG_NAME": site.syslog_name,
        "QUEUE_FILE_LIMIT": config.size.max_message_bytes * 5 // 4,
    }


def _listener(host: str, port: int) -> str | None:
    if not port:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _protocols(host: str) -> str:
    if host == "::":
        return "all"
    return f"ipv{ipaddress.ip_address(host).version}"
