"""Calls a webhook over http.client, at an address that was looked at before.

Not urllib3: there redirects, retries, proxies and unpacking would have to be turned off, and its timeouts start anew
with every byte.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, urlsplit

from opensend_milter.core.address import normal_domain
from opensend_milter.core.errors import TemporaryError, UsageError
from opensend_milter.core.webhook import Answer, kept

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""From host and port to addresses, spelled out."""

MAX_URL_CHARS = 2_048
MAX_ANSWER_BYTES = 65_536
MOST_ADDRESSES = 4
USER_AGENT = "opensend-milter"
_PORTS = {"https": 443, "http": 80}

_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "::1/128", "fc00::/7")
)
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Clouds tell a machine its credentials at such: Alibaba, Azure, Oracle, Amazon; 169.254 is link-local anyway.
        "100.100.100.200/32", "168.63.129.16/32", "192.0.0.0/24", "fd00:ec2::/32",
        "192.88.99.0/24", "64:ff9b:1::/48", "2001:db8::/32", "3fff::/20",
    )
)  # fmt: skip
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a URL names."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """As the Host field has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def place_of(url: str, *, allow_private: bool) -> Place:
    """Read a webhook's URL; raise UsageError where it is none."""
    if len(url) > MAX_URL_CHARS or any(char.isspace() or not char.isprintable() for char in url):
        raise UsageError(f"a URL has at most {MAX_URL_CHARS} characters and no spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not a URL: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or (scheme == "http" and not allow_private):
        raise UsageError("a webhook's URL begins with https://; http:// needs webhooks.allow_private")
    if parts.username is not None or parts.password is not None:
        raise UsageError("a URL with a user name or password is not called")
    host = _host(parts.hostname or "")
    target = quote(parts.path or "/", safe="/:@!$&'()*+,;=~%-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/:@!$&'()*+,;=~%-._?[]")
    return Place(scheme=scheme, host=host, port=_PORTS[scheme] if port is None else port, target=target)


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        # A name that normal_domain does not know, as `localhost`, is the resolver's business.
        host = normal_domain(text.removesuffix(".")) or text.lower()
    if not host or not host.isascii():
        raise UsageError("the URL names no host")
    return host


def may_be_called(address: IpAddress, *, allow_private: bool) -> bool:
    """Tell whether a receiver may be at this address; those for everybody or nobody, and metadata, are never."""
    if inside := _embedded(address):
        return all(may_be_called(one, allow_private=allow_private) for one in inside)
    if any(address in network for network in _NEVER):
        return False
    if any(address in network for network in _PRIVATE):
        return allow_private
    if address.is_multicast or address.is_reserved or address.is_link_local or address.is_unspecified:
        return False
    return address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST)  # noqa: PLR2004


def _embedded(address: IpAddress) -> Sequence[IpAddress]:
    """Return the IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if address.teredo:
        return address.teredo
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    one = address.ipv4_mapped or address.sixtofour
    return (one,) if one else ()


def resolve(host: str, port: int) -> Sequence[str]:
    """Ask this host's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class HttpMessenger:
    """Calls receivers; any number of threads may use it at once."""

    def __init__(
        self,
        *,
        timeout_s: float,
        allow_private: bool,
        resolve: Resolve = resolve,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`timeout_s` is for all of a call, but for the resolver, which has limits of its own."""
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolve = resolve
        self._context = context or ssl.create_default_context()

    def vet(self, url: str) -> tuple[Place, Sequence[str]]:
        """Return where a URL leads: UsageError where it may not be called, TemporaryError where nobody knows."""
        place = place_of(url, allow_private=self._allow_private)
        try:
            found = self._resolve(place.host, place.port)
        except (OSError, UnicodeError) as error:
            raise TemporaryError(f"{place.host} cannot be looked up: {_said(error)}") from error
        addresses = [ipaddress.ip_address(text) for text in found]
        allowed = [str(one) for one in addresses if may_be_called(one, allow_private=self._allow_private)]
        if not allowed:
            raise UsageError(f"{place.host} is at no public address: {', '.join(found)}")
        return place, allowed[:MOST_ADDRESSES]

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Call once; whatever goes wrong is in the answer."""
        try:
            place, addresses = self.vet(url)
            deadline = time.monotonic() + self._timeout_s
            with closing(self._connected(place, addresses, deadline)) as connection:
                return _exchange(_Timed(connection, deadline), place, headers, body)
        except (UsageError, TemporaryError) as error:
            return Answer(code=None, text=kept(str(error)))
        except TimeoutError:
            return Answer(code=None, text=f"no answer within {self._timeout_s:g} s")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer(code=None, text=kept(_said(error)))

    def _connected(self, place: Place, addresses: Sequence[str], deadline: float) -> socket.socket:
        connection = _first_connection(addresses, place.port, deadline)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if place.scheme == "http":
                return connection
            connection.settimeout(_left_s(deadline))
            return self._context.wrap_socket(connection, server_hostname=place.host)
        except BaseException:
            connection.close()
            raise


def _first_connection(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """Connect to an address, never to a name: a second lookup may say something else."""
    for left in range(len(addresses), 0, -1):
        try:
            return socket.create_connection((addresses[-left], port), _left_s(deadline) / left)
        except OSError:
            if left == 1:
                raise
    raise TimeoutError


def _exchange(timed: _Timed, place: Place, headers: Mapping[str, str], body: bytes) -> Answer:
    caller = http.client.HTTPConnection(place.host)
    # http.client writes and reads by these three methods only.
    caller.sock = cast("socket.socket", timed)
    ours = {"Host": place.authority, "Content-Type": "application/json", "User-Agent": USER_AGENT}
    caller.request("POST", place.target, body, {**ours, **headers, "Connection": "close"})
    with caller.getresponse() as response:
        text = _read(response).decode("utf-8", "replace")
        return Answer(code=response.status, text=kept(text), retry_after=response.headers.get("Retry-After", ""))


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read what comes in time: the status has decided already."""
    found = bytearray()
    try:
        while len(found) < MAX_ANSWER_BYTES and (piece := response.read1(MAX_ANSWER_BYTES - len(found))):
            found += piece
    except (OSError, http.client.HTTPException):
        pass
    return bytes(found)


class _Timed(io.RawIOBase):
    """A socket whose calls all end at one moment, which no byte now and then puts off. It is another's to close."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self._connection, self._deadline))

    def sendall(self, octets: bytes) -> None:
        rest = memoryview(octets)
        while rest:
            rest = rest[self._in_time().send(rest) :]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._in_time().recv_into(buffer)

    def _in_time(self) -> socket.socket:
        self._connection.settimeout(_left_s(self._deadline))
        return self._connection


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _said(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or f"{type(error).__name__}: {error}"
