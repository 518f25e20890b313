"""Checks of the certificate: whole, with its key, in time, for the right name."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Callable, Iterator
from functools import partial

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host.rendering.certificates import CertificatePair, find_certificate, gap_in_chain

LOADS = "tls.certificate"
SOON = dt.timedelta(days=21)
_OTHERS_READ = 0o004


def checks(config: Config, now: Callable[[], dt.datetime]) -> Iterator[Check]:
    """Return the checks of the configured certificate."""
    looks: tuple[tuple[str, str, Callable[[Config, CertificatePair], Seen]], ...] = (
        ("tls.expiry", "clients refuse an expired certificate, and then no mail comes in", partial(_in_time, now)),
        ("tls.hostname", "a client compares the certificate with the name that it connects to", _for_our_name),
        ("tls.chain", "a client that does not know the intermediate authority refuses the certificate", _is_whole),
        ("tls.key-mode", "whoever can read the key can play this host", _key_is_closed),
    )
    yield Check(
        name=LOADS,
        why="Postfix starts without TLS, or not at all, with a certificate that it cannot load",
        look=partial(_loads, config),
    )
    for name, why, look in looks:
        yield Check(
            name=name,
            why=why,
            look=partial(_of_pair, config, look),
            security=True,
            needs=LOADS,
        )


def _loads(config: Config) -> Seen:
    pair = find_certificate(config.tls, config.smtp.hostname)
    if pair is None:
        if config.smtp.plaintext_auth:
            return skipped("none is configured, and smtp.plaintext_auth is on")
        return problem("no certificate is configured: tls.certificate, tls.folder or tls.acme_json")
    return good(f"{pair.certificate} and its key belong together")


def _of_pair(config: Config, look: Callable[[Config, CertificatePair], Seen]) -> Seen:
    pair = find_certificate(config.tls, config.smtp.hostname)
    return look(config, pair) if pair else skipped("none is configured")


def _in_time(now: Callable[[], dt.datetime], config: Config, pair: CertificatePair) -> Seen:
    left = pair.expires_at - now()
    when = f"{pair.expires_at:%Y-%m-%d}"
    mend = (
        "certbot renew && systemctl reload opensend-postfix"
        if config.tls.folder
        else "renew it, then: systemctl reload opensend-postfix"
    )
    if left < dt.timedelta(0):
        return problem(f"expired on {when}", mend)
    if left < SOON:
        return warning(f"expires on {when}, in {left.days} days", mend)
    return good(f"good until {when}")


def _for_our_name(config: Config, pair: CertificatePair) -> Seen:
    name = config.smtp.hostname
    if not name:
        return warning(
            "smtp.hostname is not set, so no name can be compared",
            "set smtp.hostname to the name that clients connect to",
        )
    if not pair.covers(name):
        return problem(
            f"it is for {', '.join(pair.names) or 'no name'}, not for {name}",
            f"certbot certonly -d {shlex.quote(name)}",
        )
    return good(f"it is for {name}")


def _is_whole(_: Config, pair: CertificatePair) -> Seen:
    gap = gap_in_chain(pair.certificate)
    return warning(gap, "use fullchain.pem, not cert.pem") if gap else good("each certificate is signed by the next")


def _key_is_closed(_: Config, pair: CertificatePair) -> Seen:
    mode = pair.key.stat().st_mode
    if mode & _OTHERS_READ:
        return problem(f"every user of this host may read {pair.key}", f"chmod o= {shlex.quote(str(pair.key))}")
    return good(f"{pair.key} is closed to others")
