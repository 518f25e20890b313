"""What a person typed, as the tables have it; UsageError where it is no such thing."""

from __future__ import annotations

import re

from opensend_milter.core.address import envelope_address, normal_domain
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import Address
from opensend_milter.core.policy import network_of

MAX_NAME_CHARS = 255


def domain_name(text: str) -> str:
    """Return a domain as it is stored: lower case, A-labels, no dot at its end."""
    stripped = text.strip()
    name = normal_domain(stripped.removesuffix("."))
    if name is None or name.rpartition(".")[2].isdigit():
        raise UsageError(f"{stripped!r} is no domain name such as example.org")
    return name


def suppressed_address(text: str) -> Address:
    """Return an address as the suppression list has it: lower case."""
    address = envelope_address(text.strip())
    if address is None:
        raise UsageError(f"{text.strip()!r} is no address such as someone@example.org")
    return Address(address.lower())


def listed_address(text: str) -> str:
    """Return an address, or @domain, as a key's list has it."""
    stripped = text.strip().removesuffix(".")
    if stripped.startswith("@"):
        return f"@{domain_name(stripped[1:])}"
    address = envelope_address(stripped)
    if address is None or address.startswith("*@"):
        raise UsageError(f"{text.strip()!r} is neither an address such as someone@example.org nor @example.org")
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain_name(domain)}"


def network(text: str) -> str:
    """Return a network, or the one address, as a key's list has it."""
    found = network_of(text.strip())
    if found is None:
        raise UsageError(f"{text.strip()!r} is no network such as 192.0.2.0/24 (bits behind it must be zero)")
    return str(found)


def printable_name(text: str, what: str) -> str:
    """Return a name that can be shown; `what` says in the error whose it is."""
    name = text.strip()
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise UsageError(f"the {what} must be 1 to {MAX_NAME_CHARS} printable characters")
    return name


def is_uuid(text: str) -> bool:
    """Tell whether a text is an id of the database."""
    return bool(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text.strip(), re.IGNORECASE))
