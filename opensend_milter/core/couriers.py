"""The table of couriers: what each is called, what it can carry, how patient it is, what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from opensend_milter.core.backoff import LONGEST_S, Patience

CourierName = Literal["smtp", "ses", "sendmail", "plunk", "file"]

# SES takes 40 MiB; our trace fields count too.
_SES_BYTES = 40 * 1024 * 1024 - 1024
# A mail server that says 450 often wants to see how long we keep at it; a service that says 429 means seconds.
_MAIL_SERVER = Patience(60.0, LONGEST_S)
_SERVICE = Patience(15.0, 3_600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carries:
    """What a courier can carry; what it cannot is refused at accept, because later there would be nobody to tell."""

    max_message_bytes: int | None = None
    max_recipients: int | None = None
    max_line_octets: int | None = 1_000
    """CRLF included (RFC 5321, 4.5.3.1.6)."""
    eight_bit: bool = True
    utf8_addresses: bool = True
    """SMTPUTF8 (RFC 6531)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierRow:
    """All that is known of a courier before it is opened."""

    module: str
    """In adapters/couriers; with `section` it says what belongs together, since names that people wrote stay."""
    section: str | None
    """Of the configuration; None: it has nothing to set."""
    needs: str | None = None
    """A key of the configuration without which it is opened only where it is the configured one, to say so."""
    carries: Carries
    patience: Patience
    leaves_by: Literal["relay", "host", "ses", "provider", "nowhere"]
    """Whose servers send to the world: a sender's records in DNS must name them."""
    provider: str = ""
    """What people call it."""
    has_next_hop: bool = True
    """There is something that doctor can try: host/examining/machine.py."""


COURIERS: Mapping[CourierName, CourierRow] = {
    "smtp": CourierRow(
        module="smtp",
        section="relay",
        carries=Carries(),
        patience=_MAIL_SERVER,
        leaves_by="relay",
    ),
    "ses": CourierRow(
        module="ses",
        section="ses",
        carries=Carries(max_message_bytes=_SES_BYTES, max_recipients=50, utf8_addresses=False),
        patience=_SERVICE,
        leaves_by="ses",
    ),
    "sendmail": CourierRow(
        module="sendmail",
        section="sendmail",
        carries=Carries(),
        patience=_MAIL_SERVER,
        leaves_by="host",
    ),
    "plunk": CourierRow(
        module="plunk",
        section="api",
        needs="api.uri",
        carries=Carries(max_line_octets=None, utf8_addresses=False),
        patience=_SERVICE,
        leaves_by="provider",
        provider="Plunk",
    ),
    "file": CourierRow(
        module="maildir",
        section="maildir",
        carries=Carries(max_line_octets=None),
        patience=Patience(10.0, 600.0),
        leaves_by="nowhere",
    ),
}
COURIER_SECTIONS = frozenset(row.section for row in COURIERS.values() if row.section)


def carried_by(*, eight_bit_relay: bool) -> Mapping[CourierName, Carries]:
    """Return what each can carry; whether the SMTP relay offers 8BITMIME only the operator knows."""
    carried = {name: row.carries for name, row in COURIERS.items()}
    return {**carried, "smtp": dataclasses.replace(carried["smtp"], eight_bit=eight_bit_relay)}
