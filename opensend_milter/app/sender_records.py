"""What DNS should say of a domain: the configuration and the installation's secret in, records out."""

from __future__ import annotations

from collections.abc import Sequence

from opensend_milter.adapters.postgres import Connection, statements
from opensend_milter.adapters.postgres_admin import explained
from opensend_milter.config import Config
from opensend_milter.core.dns_records import Wanted, ownership_token
from opensend_milter.core.errors import StoreUnavailable


def wanted_of(
    config: Config, domain: str, *, token: str, selectors: Sequence[str] = (), courier: str | None = None
) -> Wanted:
    """Return what DNS should say of a domain that is sent from as configured, or by a courier of its own."""
    delivery, relay = config.delivery, config.relay
    courier = courier or delivery.courier
    envelope = delivery.bounce_domain or delivery.bounce_address.rpartition("@")[2] or domain
    if courier == "ses":
        # Without a MAIL FROM domain of its own SES uses its own return path; the record does no harm.
        spf = "include:amazonses.com"
    elif relay.host in {"127.0.0.1", "::1", "localhost"} or courier != "smtp":
        spf = f"a:{config.smtp.hostname}" if config.smtp.hostname else "mx"
    else:
        spf = f"a:{relay.host}"
    return Wanted(domain=domain, token=token, envelope_domain=envelope, spf=spf, selectors=selectors)


def token_of(connection: Connection, user_id: str, domain: str) -> str:
    """Return the ownership token of a user's domain in this installation."""
    with explained():
        row = connection.execute(statements("feedback")["secret"]).fetchone()
    if row is None:
        raise StoreUnavailable("opensend_milter.secrets is empty")
    return ownership_token(bytes(row[0]), user_id, domain)
