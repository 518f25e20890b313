"""What each courier can carry: intake asks it, because later there would be nobody to tell."""

from __future__ import annotations

from collections.abc import Mapping

from opensend_milter.core.model import Carries, CourierName

# SES takes 40 MiB; our trace fields count too.
_SES_BYTES = 40 * 1024 * 1024 - 1024


def carried_by(*, eight_bit_relay: bool) -> Mapping[CourierName, Carries]:
    """Return it for every courier; whether the SMTP relay offers 8BITMIME only the operator knows."""
    return {
        "smtp": Carries(eight_bit=eight_bit_relay),
        "ses": Carries(max_message_bytes=_SES_BYTES, max_recipients=50, utf8_addresses=False),
        "sendmail": Carries(),
        "plunk": Carries(max_line_octets=None, utf8_addresses=False),
        "file": Carries(max_line_octets=None),
    }
