"""Checks of the console: does it answer, and whom does it believe that somebody has logged in."""

from __future__ import annotations

import http.client
import ipaddress
from collections.abc import Iterator
from functools import partial

from opensend_milter.config import Config, Console
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host.examining.machine import http_connection

FEW_ADDRESSES = {4: 24, 6: 64}
"""Prefixes of networks that one proxy, or a few side by side, may be in."""
_OFF = "the console is off"
_OK = 200


def checks(config: Config) -> Iterator[Check]:
    """Return the checks of the console."""
    yield Check(
        name="console.answers",
        why="who looks for a message in a browser finds nobody",
        look=partial(_answers, config.console),
    )
    yield Check(
        name="console.believed",
        why="whoever can write the proxy's field sees all mail without logging in",
        look=partial(_believed, config.console),
        security=True,
    )


def _answers(settings: Console) -> Seen:
    if not settings.is_on:
        return skipped(_OFF)
    where = str(settings.socket) if settings.socket else f"{settings.host}:{settings.port}"
    where += ", TLS" if settings.tls else ""
    start = "systemctl status opensend-console; journalctl -u opensend-console -n 20"
    connection = http_connection(settings)
    try:
        connection.request("GET", "/login")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return problem(f"{where}: {error}", start)
    finally:
        connection.close()
    return good(where) if status == _OK else problem(f"{where}/login says {status}", start)


def _believed(settings: Console) -> Seen:
    if not settings.is_on:
        return skipped(_OFF)
    if not settings.user_header:
        return good("nobody: people log in there")
    networks = [ipaddress.ip_network(text) for text in settings.trusted_proxies.split()]
    far = [str(one) for one in networks if not one.is_private or one.prefixlen < FEW_ADDRESSES[one.version]]
    if far:
        return warning(
            f"{settings.user_header} is believed of {', '.join(far)}",
            "name the proxies' own addresses in console.trusted_proxies, or have them use console.socket",
        )
    by_socket = ["whoever may connect to the socket"] if settings.socket else []
    return good(f"{settings.user_header} of {', '.join([*by_socket, *map(str, networks)])}")
