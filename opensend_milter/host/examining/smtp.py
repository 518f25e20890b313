"""Checks that speak with our ports: they answer, refuse whoever has no key, and know a key that is good."""

from __future__ import annotations

import hashlib
import secrets
import smtplib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped
from opensend_milter.host.examining.smtp_ports import DoorShut, SmtpPort, dialogue, doors_of, shown_certificate
from opensend_milter.host.rendering.certificates import find_certificate, first_certificate

ANSWERS = "smtp.answers"
STRANGER, TARGET = "doctor@sender.invalid", "doctor@recipient.invalid"
_REFUSED = range(500, 600)
_WRONG_KEY = 535
_LOGGED_IN = 235
_LATER = range(400, 500)

MadeKey = Callable[[], AbstractContextManager[str]]
"""Makes a key for the length of a check."""


def checks(
    config: Config, *, proxied: Callable[[], frozenset[int]], key_file: Path | None, made_key: MadeKey | None
) -> Iterator[Check]:
    """Return the checks of all ports; without a key or a way to make one, no login is tried."""
    doors = cache(lambda: doors_of(config, proxied()))
    yield Check(
        name=ANSWERS,
        why="what does not answer takes no mail",
        look=lambda: _answer(doors()),
    )
    yield Check(
        name="smtp.open-relay",
        why="whoever can send without a key sends spam, and this host is listed for it",
        look=lambda: _closed_to_strangers(doors()),
        security=True,
        needs=ANSWERS,
    )
    yield Check(
        name="smtp.starttls",
        why="without TLS no key can be sent safely, and AUTH must not be offered",
        look=lambda: _secured(config, doors()),
        security=True,
        needs=ANSWERS,
    )
    yield Check(
        name="smtp.certificate",
        why="a new certificate is shown only after a reload",
        look=lambda: _shows_ours(config, doors()),
        needs=ANSWERS,
    )
    yield Check(
        name="smtp.wrong-key",
        why="a wrong key must be refused for ever (535); an answer 454 means that nobody can be asked",
        look=lambda: _wrong_key(doors()),
        security=True,
        needs=ANSWERS,
    )
    yield Check(
        name="smtp.canary-key",
        why="a fault in Dovecot's question to the database looks like a wrong key to every client",
        look=_without_a_name if config.auth.protocol == "saslauthd" else partial(_canary, doors, key_file, made_key),
        needs=ANSWERS,
    )


def _answer(doors: list[SmtpPort]) -> Seen:
    shut = []
    for door in doors:
        try:
            with dialogue(door):
                pass
        except DoorShut as error:
            shut.append(f"{door.name} ({error})")
    if shut:
        return problem(
            f"no answer: {'; '.join(shut)}", "systemctl status opensend-postfix; journalctl -t postfix-opensend -n 20"
        )
    return good(", ".join(f"{door.name} at {door.host}:{door.port}" for door in doors))


def _closed_to_strangers(doors: list[SmtpPort]) -> Seen:
    for door in doors:
        with dialogue(door) as client:
            code, _ = client.mail(STRANGER)
            if code in _REFUSED:
                continue
            taken, _ = client.rcpt(TARGET)
            client.rset()
        if taken not in _REFUSED:
            return problem(
                f"port {door.port} takes a recipient of another host without AUTH ({code}, {taken})",
                "opensend-milter doctor --only postfix",
            )
        return problem(
            f"port {door.port} takes MAIL FROM without AUTH ({code})", "opensend-milter doctor --only postfix"
        )
    return good("no port takes mail without AUTH")


def _secured(config: Config, doors: list[SmtpPort]) -> Seen:
    if config.smtp.plaintext_auth:
        return skipped("smtp.plaintext_auth is on")
    for door in doors:
        with dialogue(door) as client:
            if shown_certificate(client) is None:
                return problem(f"port {door.port} offers no TLS", "opensend-milter install --apply")
            if not client.has_extn("auth"):
                return problem(f"port {door.port} offers no AUTH", "opensend-milter install --apply")
    return good("every port speaks TLS, and offers AUTH under it")


def _shows_ours(config: Config, doors: list[SmtpPort]) -> Seen:
    pair = find_certificate(config.tls, config.smtp.hostname)
    if pair is None:
        return skipped("no certificate is configured")
    ours = hashlib.sha256(first_certificate(pair.certificate)).hexdigest()
    for door in doors:
        with dialogue(door) as client:
            shown = shown_certificate(client)
        if shown is None or hashlib.sha256(shown).hexdigest() != ours:
            return problem(
                f"port {door.port} shows another certificate than {pair.certificate}",
                "systemctl reload opensend-postfix",
            )
    return good(f"every port shows {pair.certificate}")


def _wrong_key(doors: list[SmtpPort]) -> Seen:
    with dialogue(doors[0]) as client:
        code, text = log_in(client, f"os_{secrets.token_hex(16)}")
    if code == _WRONG_KEY:
        return good("a made-up key is refused (535)")
    if code == _LOGGED_IN:
        return problem("a made-up key is taken: anybody can send", "systemctl stop opensend-postfix")
    status = "systemctl status opensend-auth-gate opensend-dovecot postgresql"
    return problem(
        f"{code} {text}: logins cannot be judged", status if code in _LATER else "opensend-milter doctor --only dovecot"
    )


def log_in(client: smtplib.SMTP, key: str) -> tuple[int, str]:
    """Say AUTH PLAIN with a key; return the answer."""
    client.user, client.password = "apikey", key
    try:
        code, text = client.auth("PLAIN", client.auth_plain)
    except smtplib.SMTPAuthenticationError as error:
        code, text = error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b""
    return code, text.decode(errors="replace")


def _canary(doors: Callable[[], list[SmtpPort]], key_file: Path | None, made_key: MadeKey | None) -> Seen:
    if key_file:
        return _known(doors(), key_file.read_text(encoding="utf-8").strip(), f"the key in {key_file}")
    if made_key:
        with made_key() as key:
            return _known(doors(), key, "a key made for this and revoked again")
    return skipped("name a file that holds a key (--key-file), or have one made for the moment (--probe)")


def _without_a_name() -> Seen:
    return skipped(
        "over saslauthd the user name must be the key's id, which a key does not tell: send a message yourself"
    )


def _known(doors: list[SmtpPort], key: str, which: str) -> Seen:
    for door in doors:
        with dialogue(door) as client:
            code, text = log_in(client, key)
        if code != _LOGGED_IN:
            mend = "opensend-milter doctor --only dovecot --only auth --only dovecot-auth --only database"
            return problem(f"port {door.port} refuses {which}: {code} {text}", mend)
    return good(f"every port takes {which}")
