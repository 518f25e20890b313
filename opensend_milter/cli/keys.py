"""`key`: make, list and revoke API keys."""

from __future__ import annotations

import dataclasses
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from opensend_milter.adapters.admin_rows import KeyRow, NewKey, Permission
from opensend_milter.adapters.postgres_admin import AdminStore
from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, plain, show, table_of
from opensend_milter.config import Config

app = typer.Typer(help="API keys: the passwords that applications log in with.", no_args_is_help=True)

USERNAME = "apikey"
PLACEHOLDER = "example.org"

Name = Annotated[str, typer.Option("--name", help="What the key is for, as lists and OpenSend's dashboard show it.")]
Domain = Annotated[
    str | None,
    typer.Option("--domain", help="Let it send from this domain only: name or id of a domain of its user."),
]
Allowed = Annotated[
    Permission,
    typer.Option("--permission", help="What it may do in OpenSend's REST API; for SMTP both are the same."),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        help="PEM file of the authority that signed our certificate, where it is none of the public ones: the examples "
        "then verify against it.",
    ),
]
KeyIdPrefix = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, or its first characters.")]


@dataclass(frozen=True, slots=True)
class _Example:
    """How an application reaches us, told by the configuration."""

    host: str
    port: int
    tls: str
    """`starttls`, `tls` or `none`."""
    domain: str | None
    """A domain that the key may send from."""
    ca_file: Path | None


@app.command("create")
def create(
    *,
    name: Name = "smtp",
    user: admin.Owner = admin.DEFAULT_USER,
    domain: Domain = None,
    permission: Allowed = "sending_access",
    ca_file: Authority = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once, with examples that can be pasted."""
    with admin.opened(config) as (settings, store):
        user_id = store.ensure_user(user)
        key = store.create_key(name=name, user_id=user_id, permission=permission, domain=domain)
        example = _example(settings, store, key, ca_file)
    show(
        {
            **dataclasses.asdict(key),
            "username": USERNAME,
            "host": example.host,
            "port": example.port,
            "tls": example.tls,
        },
        as_json=as_json,
        table=lambda: _introduce(key, example),
    )


@app.command("list")
def list_(user: admin.OnlyOf = None, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List keys, oldest first; what is shown of a key is its first and last characters."""
    with admin.opened(config) as (_, store):
        keys = store.list_keys(user)
    columns = ["ID", "NAME", "USER", "KEY", "PERMISSION", "DOMAIN", "ON SUPPRESSED", "CREATED", "LAST USED"]
    show(
        keys,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (
                    key.id,
                    key.name,
                    key.user_id,
                    key.preview,
                    key.permission,
                    _domain(key),
                    key.on_suppressed,
                    key.created_at,
                    key.last_used_at,
                )
                for key in keys
            ],
        ),
    )


@app.command("set")
def set_(
    key_id: KeyIdPrefix,
    on_suppressed: Annotated[
        Literal["reject-message", "drop-recipient", "default"],
        typer.Option(
            "--on-suppressed",
            help="A suppressed recipient: refuse the message, or send it to the others; `default`: as the "
            "configuration says.",
        ),
    ],
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Give a key its own rules; they hold from the next message on."""
    with admin.opened(config) as (_, store):
        key = store.set_key(store.find_key(key_id), None if on_suppressed == "default" else on_suppressed)
    show(key, as_json=as_json, table=lambda: f"key {key.id} ({plain(key.name)}): on suppressed {on_suppressed}")


@app.command("revoke")
def revoke(
    key_id: KeyIdPrefix,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Delete a key: from now on it is refused, also in sessions that are open."""
    with admin.opened(config) as (_, store):
        key = store.find_key(key_id)
        admin.confirm(f"Revoke key {key.id} ({plain(key.name)}, user {key.user_id})?", yes=yes)
        store.revoke_key(key.id)
    show({"revoked": key}, as_json=as_json, table=lambda: f"revoked {key.id} ({plain(key.name)})")


def _domain(key: KeyRow) -> str:
    if not key.restricted:
        return "any"
    return key.domain or "gone: sends nothing"


def _example(settings: Config, store: AdminStore, key: NewKey, ca_file: Path | None) -> _Example:
    smtp = settings.smtp
    verified = [domain.name for domain in store.list_domains(key.user_id) if domain.status == "verified"]
    everywhere = smtp.host in {"0.0.0.0", "::"}  # noqa: S104  # what it means, not where we bind
    certificate = settings.tls.certificate or settings.tls.folder or settings.tls.acme_json
    port = smtp.submission_port or smtp.relay_port
    tls = "starttls" if port else "tls"
    if smtp.plaintext_auth and not certificate and port:
        tls = "none"
    return _Example(
        host=smtp.hostname or (socket.getfqdn() if everywhere else smtp.host),
        port=port or smtp.smtps_port,
        tls=tls,
        domain=key.domain or (verified[0] if verified else None),
        ca_file=ca_file.resolve() if ca_file else None,
    )


def _introduce(key: NewKey, example: _Example) -> str:
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


def _swaks(key: NewKey, example: _Example) -> str:
    domain = example.domain or PLACEHOLDER
    line = ["swaks", "--server", example.host, "--port", str(example.port)]
    line += {"starttls": ["--tls"], "tls": ["--tls-on-connect"], "none": []}[example.tls]
    if example.tls != "none":
        line += ["--tls-verify", *(["--tls-ca-path", str(example.ca_file)] if example.ca_file else [])]
    line += ["--auth", "PLAIN", "--auth-user", USERNAME, "--auth-hide-password"]
    line += ["--from", f"hello@{domain}", "--to", f"postmaster@{domain}", "--h-Subject", "Hello"]
    # A program's arguments are visible to every user of the machine, its environment is not.
    return f"SWAKS_OPT_auth_password={key.token} {shlex.join(line)}"


def _python(key: NewKey, example: _Example) -> str:
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
