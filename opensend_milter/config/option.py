"""What is known of one key besides its type, and the checks of one value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of Linux less its final NUL."""


@dataclass(frozen=True, slots=True)
class Check(Generic[T_contra]):
    """A condition and how people read it."""

    expected: str
    passes: Callable[[T_contra], bool]
    """May raise ValueError instead of returning False."""


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one key besides its type and default."""

    help: str
    env: str | None
    renders: bool
    """Postfix or Dovecot must be rendered again."""
    secret: bool
    """The value may be, or hold, a password: no error text shows it."""
    check: Check[Any] | None


def option(
    default: T,
    text: str,
    *,
    env: str | None = None,
    renders: bool = False,
    secret: bool = False,
    check: Check[T] | None = None,
) -> T:
    """Declare one key: its default, its help, and the seeds' environment variable that overrides it."""
    return field(default=default, metadata={"option": Option(text, env, renders, secret, check)})


def whole(low: int, high: int) -> Check[int]:
    """Check a whole number, bounds included."""
    return Check(f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def number(low: float, high: float) -> Check[float]:
    """Check a number, bounds included."""
    return Check(f"a number from {low} to {high}", lambda value: low <= value <= high)


def _matches(expected: str, pattern: str) -> Check[str]:
    return Check(expected, lambda value: re.fullmatch(pattern, value, re.ASCII) is not None)


def _is_http_url(value: str) -> bool:
    parts = urlsplit(value)
    return not value or (parts.scheme in {"http", "https"} and bool(parts.hostname) and " " not in value)


def _is_address(value: str) -> bool:
    local, at, domain = value.rpartition("@")
    return not value or (bool(local and at and domain) and value.isascii() and not set(value) & set(" <>"))


def _is_absolute(value: Path | None) -> bool:
    # main.cf and dovecot.conf would read more than a path into any of these.
    return value is None or (value.is_absolute() and not set(str(value)) & set(" $,;#{}\"'\\"))


def _is_socket(value: Path | None) -> bool:
    return value is None or (_is_absolute(value) and len(bytes(value)) <= MAX_SOCKET_PATH_BYTES)


PORT: Check[int] = Check("a port from 1 to 65535, or 0 for off", lambda value: 0 <= value <= 65535)  # noqa: PLR2004
DATABASE_URL = _matches("postgresql://[user@]host[:port]/database", r"postgres(ql)?://\S*")
HTTP_URL = Check("a URL that begins with http:// or https://", _is_http_url)
LISTEN_HOST: Check[str] = Check(
    "an IP address to listen on, such as 0.0.0.0 or 127.0.0.1", lambda value: bool(ipaddress.ip_address(value))
)
HOST = _matches("a host name or an IP address", r"[\w.:-]+")
HOSTNAME = _matches("a host name such as mail.example.org", r"([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)?")
GROUP = _matches("the name of a group", r"[\w.-]+")


def _are_networks(value: str) -> bool:
    return all(ipaddress.ip_network(one) for one in value.split())


NETWORKS: Check[str] = Check("networks such as 10.0.0.0/8 2001:db8::/32, separated by spaces", _are_networks)
FIELD = _matches("the name of a header field, such as x-forwarded-user", r"[A-Za-z0-9-]*")
WORD = _matches("one word, such as events", r"[A-Za-z0-9_-]*")
HOSTS_AND_PORTS = _matches("host:port, separated by spaces", r"([\w.-]+:[0-9]{1,5}( +[\w.-]+:[0-9]{1,5})*)?")
ARNS = _matches("ARNs such as arn:aws:sns:us-east-1:123456789012:events", r"(arn:[\w:.-]+( +arn:[\w:.-]+)*)?")
REGION = _matches("a region such as us-east-1", r"[a-z0-9-]+")
ABSOLUTE = Check("an absolute path without spaces or special characters", _is_absolute)
SOCKET = Check(
    f"an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes without spaces or special characters", _is_socket
)
ADDRESS = Check("an address such as bounces@example.org", _is_address)
