"""Who asks: the secret in a request's header, and the client's address behind proxies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from starlette.datastructures import Headers
from starlette.requests import Request

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LONGEST_SECRET = 1_000
_MOST_PROXIES = 32
"""One behind the other."""
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"]*)"|([^;\s"]+))', re.IGNORECASE)


def secret_of(headers: Headers) -> str | None:
    """Return the API key of a request, trimmed; None where it has none that could be one."""
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, secret = authorization.strip().partition(" ")
        secret = secret if scheme.lower() == "bearer" else ""
    else:
        secret = headers.get("x-api-key", "")
    secret = secret.strip()
    return secret if secret and len(secret) <= _LONGEST_SECRET else None


def client_address(request: Request, proxies: Sequence[str], header: str) -> str:
    """Return the address of the client: the last one that no trusted proxy has."""
    peer = _parsed(request.client.host) if request.client else None
    if peer is None:
        return request.client.host if request.client else "unknown"
    trusted = _networks(tuple(proxies))
    if not _is_in(peer, trusted):
        return str(peer)
    # From right to left: what stands further left was written by the client, if it liked.
    for text in islice(reversed(list(_named(request.headers.getlist(header), header))), _MOST_PROXIES):
        found = _parsed(text)
        if found is None:
            break
        peer = found
        if not _is_in(found, trusted):
            break
    return str(peer)


def _named(values: Sequence[str], header: str) -> Iterator[str]:
    for value in values:
        for part in value.split(","):
            if header == "forwarded":
                match = _FOR.search(part)
                yield (match[1] or match[2]) if match else ""
            else:
                yield part


def _parsed(text: str) -> IpAddress | None:
    """Read an address, with or without a port; an IPv4 address in an IPv6 one is that."""
    text = text.strip()
    if match := re.fullmatch(r"\[([^\]]*)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", text):
        text = match[1] or match[2]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found


@lru_cache(maxsize=8)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def _is_in(address: IpAddress, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
