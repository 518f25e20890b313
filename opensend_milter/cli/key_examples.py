"""How an application uses a new key: lines that can be pasted."""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from opensend_milter.adapters.admin_rows import NewKey
from opensend_milter.adapters.postgres_admin import AdminStore
from opensend_milter.config import Config

USERNAME = "apikey"
PLACEHOLDER = "example.org"


@dataclass(frozen=True, slots=True)
class Example:
    """How an application reaches us, told by the configuration."""

    host: str
    port: int
    tls: str
    """`starttls`, `tls` or `none`."""
    domain: str | None
    """A domain that the key may send from."""
    ca_file: Path | None


def example_of(settings: Config, store: AdminStore, key: NewKey, ca_file: Path | None) -> Example:
    """Return how to reach us with this key, as the configuration and its domains say."""
    smtp = settings.smtp
    verified = [domain.name for domain in store.list_domains(key.user_id) if domain.status == "verified"]
    everywhere = smtp.host in {"0.0.0.0", "::"}  # noqa: S104  # what it means, not where we bind
    certificate = settings.tls.certificate or settings.tls.folder or settings.tls.acme_json
    port = smtp.submission_port or smtp.relay_port
    tls = "starttls" if port else "tls"
    if smtp.plaintext_auth and not certificate and port:
        tls = "none"
    return Example(
        host=smtp.hostname or (socket.getfqdn() if everywhere else smtp.host),
        port=port or smtp.smtps_port,
        tls=tls,
        domain=key.domain or (verified[0] if verified else None),
        ca_file=ca_file.resolve() if ca_file else None,
    )


def introduce(key: NewKey, example: Example) -> str:
    """Show a key, once, and how to use it."""
    scope = f"sends from {key.domain} only" if key.domain else "sends from any verified domain of its user"
    lines = [
        f"key {key.id} ({key.name}, user {key.user_id}): {scope}",
        "",
        f"    {key.token}",
        "",
        "Keep it now: it is not stored and cannot be shown again. The user name is always 'apikey'.",
    ]
    if example.domain is None:
        lines += [
            "",
            f"No domain of user {key.user_id} is verified yet: `opensend-milter domain add DOMAIN --verified`;",
            f"then put DOMAIN in place of {PLACEHOLDER} below.",
        ]
    if example.tls != "none" and not example.ca_file:
        lines += [
            "",
            "Both examples verify our certificate. Where no public authority signed it, give them its file:",
            "--tls-ca-path FILE to swaks, cafile=FILE to create_default_context().",
        ]
    return "\n".join(
        [*lines, "", "With swaks:", "", _swaks(key, example), "", "With Python:", "", _python(key, example)]
    )


def _swaks(key: NewKey, example: Example) -> str:
    domain = example.domain or PLACEHOLDER
    line = ["swaks", "--server", example.host, "--port", str(example.port)]
    line += {"starttls": ["--tls"], "tls": ["--tls-on-connect"], "none": []}[example.tls]
    if example.tls != "none":
        line += ["--tls-verify", *(["--tls-ca-path", str(example.ca_file)] if example.ca_file else [])]
    line += ["--auth", "PLAIN", "--auth-user", USERNAME, "--auth-hide-password"]
    line += ["--from", f"hello@{domain}", "--to", f"postmaster@{domain}", "--h-Subject", "Hello"]
    # A program's arguments are visible to every user of the machine, its environment is not.
    return f"SWAKS_OPT_auth_password={key.token} {shlex.join(line)}"


def _python(key: NewKey, example: Example) -> str:
    domain = example.domain or PLACEHOLDER
    trust = f"cafile={str(example.ca_file)!r}" if example.ca_file else ""
    context = f"context=ssl.create_default_context({trust})"
    server = f"{example.host!r}, {example.port}"
    opening = f"smtplib.SMTP_SSL({server}, {context})" if example.tls == "tls" else f"smtplib.SMTP({server})"
    return "\n".join([
        "import smtplib",
        *(["import ssl"] if example.tls != "none" else []),
        "from email.message import EmailMessage",
        "",
        "message = EmailMessage()",
        f'message["From"] = "hello@{domain}"',
        f'message["To"] = "postmaster@{domain}"',
        'message["Subject"] = "Hello"',
        'message.set_content("It works.")',
        f"with {opening} as smtp:",
        *([f"    smtp.starttls({context})"] if example.tls == "starttls" else []),
        f'    smtp.login("{USERNAME}", "{key.token}")',
        "    smtp.send_message(message)",
    ])  # fmt: skip
