"""Resolver over dnspython."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable
from typing import TypeVar

import dns.exception
import dns.name
import dns.resolver

from opensend_milter.core.dns_records import Unanswered
from opensend_milter.core.errors import UsageError

TIMEOUT_S = 5.0
LIFETIME_S = 12.0
_DNS_PORT = 53
T = TypeVar("T")


class DnsResolver:
    """Asks the servers of /etc/resolv.conf, or the one that is named."""

    def __init__(
        self,
        nameserver: str = "",
        *,
        timeout_s: float = TIMEOUT_S,
        lifetime_s: float = LIFETIME_S,
        in_all_s: float = math.inf,
    ) -> None:
        """`nameserver`: address, or address:port; empty: the system's. `in_all_s`: for all questions together."""
        try:
            self._resolver = dns.resolver.Resolver(configure=not nameserver)
        except dns.resolver.NoResolverConfiguration as error:
            raise Unanswered("no name server is configured in /etc/resolv.conf") from error
        if nameserver:
            self._resolver.nameservers, self._resolver.port = _server(nameserver)
        self._resolver.timeout = timeout_s
        self._lifetime_s = lifetime_s
        self._until = time.monotonic() + in_all_s
        # A negative answer of a moment ago must not hide the record that was added since.
        self._resolver.cache = None

    def texts(self, name: str) -> list[str]:
        """Return the TXT records of a name, each with its strings joined; none where the name does not exist."""
        answer = self._ask(name, lambda: self._resolve(name, "TXT"), None)
        if answer is None:
            return []
        return [b"".join(record.strings).decode("utf-8", errors="replace") for record in answer]

    def alias(self, name: str) -> str:
        """Return what a name is another name of (CNAME); empty: of none."""
        answer = self._ask(name, lambda: self._resolve(name, "CNAME"), None)
        return "" if answer is None else str(answer[0].target.to_text(omit_final_dot=True)).lower()

    def exists(self, name: str) -> bool:
        """Tell whether a name exists, or one below it."""

        def ask() -> bool:
            self._resolve(name, "TXT", raise_on_no_answer=False)
            return True

        return self._ask(name, ask, default=False)

    def _resolve(self, name: str, kind: str, *, raise_on_no_answer: bool = True) -> dns.resolver.Answer:
        left_s = max(0.0, self._until - time.monotonic())
        return self._resolver.resolve(
            name, kind, search=False, raise_on_no_answer=raise_on_no_answer, lifetime=min(self._lifetime_s, left_s)
        )

    def _ask(self, name: str, ask: Callable[[], T], default: T) -> T:
        try:
            return ask()
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return default
        except dns.resolver.NoNameservers as error:
            raise Unanswered(f"{name}: every name server failed (SERVFAIL or refused)") from error
        except (dns.exception.Timeout, OSError) as error:
            raise Unanswered(f"{name}: no answer in time") from error
        except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel, UnicodeError) as error:
            raise UsageError(f"{name!r} cannot be asked for: {error}") from error
        except dns.exception.DNSException as error:
            raise Unanswered(f"{name}: {error}") from error


def _server(text: str) -> tuple[list[str], int]:
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, str(_DNS_PORT)
    try:
        return [str(ipaddress.ip_address(host.strip("[]")))], int(port)
    except ValueError as error:
        raise UsageError(f"--nameserver: {text!r} is no address such as 192.0.2.53 or 192.0.2.53:5353") from error
