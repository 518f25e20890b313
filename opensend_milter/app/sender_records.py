"""What DNS should say of a domain: who sends its mail decides, and that is decided here."""

from __future__ import annotations

from collections.abc import Sequence

from opensend_milter.adapters.admin.verification import Domain, courier_of, ses_identity_of, token_of
from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.config import Config
from opensend_milter.core.couriers import COURIERS, CourierName
from opensend_milter.core.dns_records import Keys, RecordState, SesIdentity, Unasked, Wanted

SPF_OF_SES = "include:amazonses.com"
_LOCAL = {"127.0.0.1", "::1", "localhost"}
_NOT_OURS = Unasked("OpenSend verifies domains, in its dashboard")
_NO_TOKEN = Unasked("not looked for")
_SES_RETURNS = Unasked("Amazon SES's own return path; DMARC passes by DKIM")
_UNREADABLE = Unasked("this role may not read it: ask as the tables' owner", RecordState.UNKNOWN)


def verifies(config: Config) -> bool:
    """Tell whether it is we who verify domains, by an ownership record; beside OpenSend it is OpenSend."""
    return config.profile == "standalone"


def token_for(config: Config, connection: Connection, domain: Domain) -> str:
    """Return what proves to us whose a domain is; nothing where it is nobody's, or nobody proves it to us."""
    return token_of(connection, domain.user_id, domain.name) if domain.user_id and verifies(config) else ""


def wanted_for(
    config: Config, connection: Connection, domain: Domain, *, token: str = "", selectors: Sequence[str] = ()
) -> Wanted:
    """Return what DNS should say of a domain as its rows have it."""
    return wanted_of(
        config,
        domain.name,
        token=token,
        selectors=selectors,
        courier=courier_of(connection, domain),
        identity=ses_identity_of(connection, domain),
    )


def wanted_of(
    config: Config,
    domain: str,
    *,
    token: str,
    selectors: Sequence[str] = (),
    courier: CourierName | None = None,
    identity: SesIdentity | None = None,
) -> Wanted:
    """Return what DNS should say of a domain that is sent from as configured, or by a courier of its own.

    Without `token` nobody looks for an ownership record. `identity`: None where it could not be read.
    """
    if not verifies(config):
        # Its ingester sends by SES, whatever our couriers are.
        return _by_ses(domain, _NOT_OURS, identity, selectors, "see OpenSend's dashboard")
    ownership = token or _NO_TOKEN
    name = courier or config.delivery.courier
    row = COURIERS[name]
    match row.leaves_by:
        case "ses":
            return _by_ses(domain, ownership, identity, selectors, "see the console of Amazon SES")
        case "provider":
            returns = Unasked(f"{row.provider}'s own return path; DMARC passes by DKIM")
            keys = Keys(advice=f"see {row.provider}'s dashboard", selectors=selectors)
            return Wanted(domain=domain, ownership=ownership, envelope_domain=domain, spf=returns, dkim=keys)
        case "nowhere":
            stays = Unasked(f"courier {name}: nothing leaves this host")
            return Wanted(
                domain=domain, ownership=ownership, envelope_domain=domain, spf=stays, dkim=stays, dmarc=stays
            )
        case "relay" if config.relay.host not in _LOCAL:
            spf = f"a:{config.relay.host}"
        case "relay" | "host":
            spf = f"a:{config.smtp.hostname}" if config.smtp.hostname else "mx"
    advice = f"publish the line of whoever signs (OpenDKIM, Amazon SES) at SELECTOR._domainkey.{domain}"
    delivery = config.delivery
    return Wanted(
        domain=domain,
        ownership=ownership,
        envelope_domain=delivery.bounce_domain or delivery.bounce_address.rpartition("@")[2] or domain,
        spf=spf,
        dkim=Keys(advice=advice, selectors=selectors),
    )


def _by_ses(
    domain: str, ownership: str | Unasked, identity: SesIdentity | None, selectors: Sequence[str], advice: str
) -> Wanted:
    """SES takes no return path of ours: it has its own, or the one that it was given for this domain."""
    known = identity or SesIdentity()
    return_path = _below(domain, known.return_path)
    keys = Keys(advice=advice, tokens=known.tokens, selectors=[*filter(None, [known.selector]), *selectors])
    return Wanted(
        domain=domain,
        ownership=ownership,
        envelope_domain=return_path or domain,
        spf=SPF_OF_SES if return_path else _SES_RETURNS if identity else _UNREADABLE,
        dkim=keys,
    )


def _below(domain: str, named: str) -> str:
    """Return a name below a domain that is named in full or by its first label; nothing where none is named."""
    name = named.strip().strip(".").lower()
    if not name or f".{name}".endswith(f".{domain.lower()}"):
        return name
    return f"{name}.{domain}"
