"""What must hold between values."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from opensend_milter.config.sections import Api, Config, Console, Http, Queue, Relay, Smtp, Tls
from opensend_milter.config.values import shown
from opensend_milter.core.errors import ConfigError

NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Clash:
    """Values that are right by themselves and wrong together."""

    keys: tuple[str, ...]
    """All that take part; the first is the one to mend."""
    expected: str
    got: str


def clashes(config: Config) -> Iterator[Clash]:
    """Find what no command can work with."""
    yield from _ports(config.smtp)
    yield from _plaintext(config.smtp)
    yield from _certificate(config.tls)
    yield from _queue(config.queue)
    yield from _relay(config.relay)
    yield from _api(config.api)
    yield from _distinct(
        "a socket",
        {
            "milter.socket": config.milter.socket,
            "auth.socket": config.auth.socket,
            "auth.dovecot_socket": config.auth.dovecot_socket,
            **({"http.socket": config.http.socket} if config.http.socket else {}),
            **({"console.socket": config.console.socket} if config.console.socket else {}),
        },
    )
    yield from _https("http", config.http, config.tls)
    if config.console.is_on:
        yield from _https("console", config.console, config.tls)
        yield from _console(config.console)
    if config.billing == "stripe" and config.profile != "opensend":
        yield Clash(("billing", "profile"), "none, because only OpenSend has billing", shown(config.billing))
    if config.milter.soft_timeout_s >= config.milter.hard_timeout_s:
        yield Clash(
            ("milter.soft_timeout_s", "milter.hard_timeout_s"),
            f"less than milter.hard_timeout_s ({config.milter.hard_timeout_s:g})",
            shown(f"{config.milter.soft_timeout_s:g}"),
        )


def front_door_clashes(config: Config) -> Iterator[Clash]:
    """Find what Postfix cannot be rendered with."""
    tls = config.tls
    if not (tls.certificate or tls.folder or tls.acme_json or config.smtp.plaintext_auth):
        yield Clash(
            ("tls.certificate", "tls.folder", "tls.acme_json", "smtp.plaintext_auth"),
            "a certificate: tls.certificate with tls.key, or tls.folder, or tls.acme_json; for development "
            "smtp.plaintext_auth: true with smtp.host: 127.0.0.1",
            NOTHING,
        )


def check_front_door(config: Config) -> None:
    """Raise ConfigError unless Postfix can be rendered; only rendering and `check-config` need it."""
    faults = [f"{clash.keys[0]}: expected {clash.expected}, got {clash.got}" for clash in front_door_clashes(config)]
    if faults:
        raise ConfigError("\n".join(faults))


def _distinct(what: str, values: Mapping[str, object]) -> Iterator[Clash]:
    owners: dict[object, str] = {}
    for key, value in values.items():
        owner = owners.setdefault(value, key)
        if owner != key:
            yield Clash((key, owner), f"{what} other than that of {owner}", shown(str(value)))


def _ports(smtp: Smtp) -> Iterator[Clash]:
    ports = {
        "smtp.relay_port": smtp.relay_port,
        "smtp.submission_port": smtp.submission_port,
        "smtp.smtps_port": smtp.smtps_port,
    }
    on = {key: port for key, port in ports.items() if port}
    yield from _distinct("a port", on)
    if not on:
        yield Clash(tuple(ports), "at least one of relay_port, submission_port and smtps_port to be on", shown("0"))


def _plaintext(smtp: Smtp) -> Iterator[Clash]:
    if smtp.plaintext_auth and not ipaddress.ip_address(smtp.host).is_loopback:
        yield Clash(
            ("smtp.plaintext_auth", "smtp.host"),
            f"false, because smtp.host is {smtp.host} and no loopback address such as 127.0.0.1",
            shown("true"),
        )


def _certificate(tls: Tls) -> Iterator[Clash]:
    if tls.certificate and tls.folder:
        yield Clash(("tls.folder", "tls.certificate"), "no folder beside tls.certificate", shown(str(tls.folder)))
    if tls.certificate and not tls.key:
        yield Clash(("tls.key", "tls.certificate"), "a file, because tls.certificate is set", NOTHING)
    if tls.key and not tls.certificate:
        yield Clash(("tls.certificate", "tls.key"), "a file, because tls.key is set", NOTHING)


def _https(name: str, door: Http | Console, tls: Tls) -> Iterator[Clash]:
    if not door.tls:
        return
    if door.socket:
        yield Clash((f"{name}.tls", f"{name}.socket"), "false, because a unix socket needs no TLS", shown("true"))
    elif not (tls.certificate or tls.folder):
        without = "only Postfix is given that of tls.acme_json" if tls.acme_json else "none is named"
        yield Clash(
            (f"{name}.tls", "tls.certificate", "tls.folder", "tls.acme_json"),
            f"false, or a certificate in tls.certificate or tls.folder, because {without}",
            shown("true"),
        )


def _console(console: Console) -> Iterator[Clash]:
    if not console.socket and not console.tls and not ipaddress.ip_address(console.host).is_loopback:
        yield Clash(
            ("console.tls", "console.host"),
            f"true, because passwords would cross the network in clear to {console.host}",
            shown("false"),
        )
    url = urlsplit(console.public_url)
    if url.scheme == "http" and not _is_this_host(url.hostname or ""):
        yield Clash(
            ("console.public_url",),
            "a URL that begins with https://, because people send passwords there",
            shown(console.public_url),
        )
    if console.user_header and not console.socket and not console.trusted_proxies:
        yield Clash(
            ("console.user_header", "console.socket", "console.trusted_proxies"),
            "empty, or a proxy that is believed: console.socket or console.trusted_proxies",
            shown(console.user_header),
        )


def _queue(queue: Queue) -> Iterator[Clash]:
    if queue.url:
        return
    if queue.require:
        yield Clash(("queue.url", "queue.require"), "an SQS queue, because queue.require is on", NOTHING)
    elif not queue.db_polling_fallback:
        yield Clash(
            ("queue.url", "queue.db_polling_fallback"),
            "an SQS queue, because queue.db_polling_fallback is off",
            NOTHING,
        )


def _relay(relay: Relay) -> Iterator[Clash]:
    if relay.username and not relay.password_file:
        yield Clash(("relay.password_file", "relay.username"), "a file, because relay.username is set", NOTHING)
    if relay.password_file and not relay.username:
        yield Clash(("relay.username", "relay.password_file"), "a name, because relay.password_file is set", NOTHING)
    hosts = [relay.host, *(hop.rpartition(":")[0] for hop in relay.fallbacks.split())]
    others = [host for host in hosts if not _is_this_host(host)]
    if relay.username and relay.tls == "none" and others and not relay.plaintext_auth:
        yield Clash(
            ("relay.tls", "relay.username", "relay.host", "relay.fallbacks", "relay.plaintext_auth"),
            f"starttls or tls, because relay.username sends a password to {others[0]}; or relay.plaintext_auth: true",
            shown(relay.tls),
        )


def _api(api: Api) -> Iterator[Clash]:
    url = urlsplit(api.uri)
    if api.key_file and url.scheme == "http" and not _is_this_host(url.hostname or "") and not api.plaintext_auth:
        yield Clash(
            ("api.uri", "api.key_file", "api.plaintext_auth"),
            f"a URL that begins with https://, because the key goes to {url.hostname}; or api.plaintext_auth: true",
            shown(api.uri),
        )


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
