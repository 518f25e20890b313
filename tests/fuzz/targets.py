"""All that is given made-up octets, by name: what grows them, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tests.fuzz import conversation, files, grammar, logins, names, readers, signed
from tests.fuzz.measures import Check


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: what it is given, and what must hold."""

    inputs: grammar.Octets
    opened: Callable[[], AbstractContextManager[Check]]


def _plain(inputs: grammar.Octets, check: Check) -> Target:
    """One for which nothing has to be started."""
    return Target(inputs, lambda: nullcontext(check))


TARGETS: Mapping[str, Target] = {
    "address": _plain(grammar.ADDRESSES, readers.addresses),
    "mime": _plain(grammar.MESSAGES, readers.mime),
    "dsn": _plain(grammar.REPORTS, readers.dsn),
    "http": _plain(grammar.BODIES, readers.http),
    "sns": _plain(signed.ENVELOPES, signed.envelope),
    "links": _plain(signed.TOKENS, signed.link),
    "config": Target(files.CONFIGURATIONS, files.configuration),
    "acme": Target(files.ACME, files.acme),
    "milter": Target(grammar.CONVERSATIONS, conversation.opened),
    "gate": Target(logins.CONVERSATIONS, logins.opened),
    "names": Target(names.HISTORIES, names.opened),
}
