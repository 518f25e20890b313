"""How an application uses a key: lines that can be pasted, filled in as the configuration says."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from opensend_milter.adapters.admin.rows import NewKey
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.cli.snippets import CLIENTS, SNIPPETS, USERNAME, Access, Client, Encryption
from opensend_milter.config import Config

PLACEHOLDER = "example.org"
NO_KEY = "YOUR_API_KEY"
SHOWN = [Client.SWAKS, Client.PYTHON]
"""Where none was asked for."""


def snippets_of(clients: Sequence[Client], access: Access) -> dict[Client, str]:
    """Return what each of these clients needs."""
    return {client: one.write(access) for client, one in SNIPPETS.items() if client in clients or Client.ALL in clients}


def domain_of(store: AdminStore, user_id: str) -> str | None:
    """Return a domain that the user may send from."""
    return next((domain.name for domain in store.list_domains(user_id) if domain.status == "verified"), None)


def access_of(settings: Config, *, key: str, sender: str | None, domain: str | None, ca_file: Path | None) -> Access:
    """Return how to reach us, as the configuration says; the sender is an address of the domain unless it is given."""
    smtp, domain = settings.smtp, domain or PLACEHOLDER
    host = smtp.hostname or _named(smtp.host)
    port = smtp.submission_port or smtp.relay_port
    certificate = settings.tls.certificate or settings.tls.folder or settings.tls.acme_json
    tls: Encryption = "starttls" if port else "tls"
    if smtp.plaintext_auth and not certificate and port:
        tls = "none"
    return Access(
        host=host,
        port=port or smtp.smtps_port,
        tls=tls,
        http_url=_http_url(settings, host),
        key=key,
        sender=sender or f"hello@{domain}",
        recipient=f"postmaster@{domain}",
        ca_file=ca_file.resolve() if ca_file and tls != "none" else None,
    )


def _named(host: str) -> str:
    everywhere = host in {"0.0.0.0", "::"}  # noqa: S104  # what it means, not where we bind
    return socket.getfqdn() if everywhere else host


def _http_url(settings: Config, host: str) -> str:
    http = settings.http
    if http.public_url or http.socket:
        return http.public_url.rstrip("/") or f"https://{host}"
    listens = host if http.tls else _named(http.host)
    listens = f"[{listens}]" if ":" in listens else listens
    return f"{'https' if http.tls else 'http'}://{listens}:{http.port}"


def titled(snippets: dict[Client, str]) -> str:
    """Put titles between them."""
    return "\n".join(f"With {SNIPPETS[client].title}:\n\n{text}" for client, text in snippets.items())


def introduce(key: NewKey, access: Access, snippets: dict[Client, str], *, lacks_domain: bool) -> str:
    """Show a key, once, and how to use it."""
    scope = f"sends from {key.domain} only" if key.domain else "sends from any verified domain of its user"
    lines = [
        f"key {key.id} ({key.name}, user {key.user_id}): {scope}",
        "",
        f"    {key.token}",
        "",
        f"Keep it now: it is not stored and cannot be shown again. The user name is always '{USERNAME}'.",
    ]
    if lacks_domain:
        lines += [
            "",
            f"No domain of user {key.user_id} is verified yet: `opensend-milter domain add DOMAIN --verified`;",
            f"then put DOMAIN in place of {PLACEHOLDER} below.",
        ]
    if access.tls != "none" and not access.ca_file:
        lines += [
            "",
            "It verifies our certificate. Where no public authority signed it, `--ca-file FILE` names which did.",
        ]
    others = [client for client in CLIENTS if client not in snippets]
    if others:
        lines += ["", f"Other clients: `opensend-milter key snippet CLIENT`, of {', '.join(others)}."]
    return "\n".join([*lines, "", titled(snippets)])
