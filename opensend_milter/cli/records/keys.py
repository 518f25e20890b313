"""`key`: make, list and revoke API keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from opensend_milter.adapters.admin.rows import (
    KeyChanges,
    KeyDetail,
    KeyRow,
    NewSecret,
    Permission,
    SecretRow,
)
from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, on_page, plain, show, table_of
from opensend_milter.cli.records import key_examples
from opensend_milter.cli.snippets import USERNAME, Access, Client
from opensend_milter.core.address import envelope_address
from opensend_milter.core.errors import UsageError

app = typer.Typer(help="API keys: the passwords that applications log in with.", no_args_is_help=True)

Name = Annotated[str, typer.Option("--name", help="What the key is for, as lists and OpenSend's dashboard show it.")]
Domain = Annotated[
    str | None,
    typer.Option("--domain", help="Let it send from this domain only: name or id of a domain of its user."),
]
Allowed = Annotated[
    Permission,
    typer.Option(
        "--permission", help="What it may do over HTTP, and in OpenSend's REST API; for SMTP both are the same."
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        help="PEM file of the authority that signed our certificate, where it is none of the public ones: the snippets "
        "then verify against it.",
    ),
]
Snippets = Annotated[
    list[Client],
    typer.Option(
        "--snippet", metavar="CLIENT", help=f"Show how this one is set up; several times: {', '.join(Client)}."
    ),
]
Clients = Annotated[
    list[Client], typer.Argument(metavar="CLIENT...", help=f"Which: {', '.join(Client)}.", show_default=False)
]
Sender = Annotated[
    str | None, typer.Option("--from", metavar="ADDRESS", help="Who sends; else hello@ a verified domain of the user.")
]
AllowFrom = Annotated[
    str | None,
    typer.Option("--allow-from", metavar="LIST", help="Addresses, or @domain, that From may show; empty: any."),
]
AllowTo = Annotated[
    str | None,
    typer.Option("--allow-to", metavar="LIST", help="Addresses, or @domain, that it may send to; empty: any."),
]
Network = Annotated[
    str | None,
    typer.Option("--network", metavar="LIST", help="Networks from where it may be used; empty: from anywhere."),
]
PerMinute = Annotated[
    str | None, typer.Option("--per-minute", metavar="N", help="Messages a minute; empty: as the configuration says.")
]
PerDay = Annotated[
    str | None, typer.Option("--per-day", metavar="N", help="Messages a day, from midnight UTC; empty: any number.")
]
Expires = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="After 12h, 30d, 8w, or at a date or time (ISO 8601), or `never`."),
]
Attachments = Annotated[
    bool | None, typer.Option("--attachments/--no-attachments", help="Let it send attachments, inline images included.")
]
Html = Annotated[bool | None, typer.Option("--html/--no-html", help="Let it send HTML.")]
Bulk = Annotated[bool | None, typer.Option("--bulk/--no-bulk", help="Let it send several messages in one request.")]
Suppressed = Annotated[
    Literal["reject-message", "drop-recipient", "default"] | None,
    typer.Option(
        "--on-suppressed",
        help="A suppressed recipient: refuse the message, or send it to the others; `default`: as the "
        "configuration says.",
    ),
]
Keep = Annotated[
    str, typer.Option("--keep", metavar="AGE", help="How long the old secret stays good: 12h, 7d, or 0 for not at all.")
]
KeyIdPrefix = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, or either end of it.")]


@app.command("create")
def create(
    *,
    name: Name = "smtp",
    user: admin.Owner = admin.DEFAULT_USER,
    domain: Domain = None,
    permission: Allowed = "sending_access",
    clients: Snippets = key_examples.SHOWN,
    ca_file: Authority = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once, with what clients need.

    The lines for clients can be pasted.
    """
    with admin.opened(config) as (settings, store):
        user_id = store.ensure_user(user)
        key = store.create_key(name=name, user_id=user_id, permission=permission, domain=domain)
        own = key.domain or key_examples.domain_of(store, user_id)
    access = key_examples.access_of(settings, key=key.token, sender=None, domain=own, ca_file=ca_file)
    snippets = key_examples.snippets_of(clients, access)
    show(
        {**dataclasses.asdict(key), **_reached(access), "snippets": snippets},
        as_json=as_json,
        table=lambda: key_examples.introduce(key, access, snippets, lacks_domain=own is None),
    )


@app.command("snippet")
def snippet(
    *,
    clients: Clients,
    user: admin.Owner = admin.DEFAULT_USER,
    sender: Sender = None,
    ca_file: Authority = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Show how clients are set up.

    YOUR_API_KEY stands where the key goes: we do not know it any more.
    """
    with admin.opened(config) as (settings, store):
        if sender and not envelope_address(sender):
            raise UsageError(f"--from: {sender!r} is no address such as someone@example.org")
        own = key_examples.domain_of(store, user)
    access = key_examples.access_of(settings, key=key_examples.NO_KEY, sender=sender, domain=own, ca_file=ca_file)
    snippets = key_examples.snippets_of(clients, access)
    alone = len(snippets) == 1
    show(
        {**_reached(access), "snippets": snippets},
        as_json=as_json,
        table=lambda: "".join(snippets.values()) if alone else key_examples.titled(snippets),
    )


def _reached(access: Access) -> dict[str, object]:
    return {"username": USERNAME, "host": access.host, "port": access.port, "tls": access.tls}


@app.command("list")
def list_(user: admin.OnlyOf = None, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List keys, oldest first.

    What is shown of a key itself is its first and last characters.
    """
    with admin.opened(config) as (_, store):
        keys = store.list_keys(user)
    columns = ["ID", "NAME", "USER", "KEY", "PERMISSION", "DOMAIN", "ON SUPPRESSED", "CREATED", "LAST USED", "EXPIRES"]
    show(keys, as_json=as_json, table=lambda: _table(columns, keys, utc=utc))


def _table(columns: Sequence[str], keys: Sequence[KeyRow], *, utc: bool) -> str:
    drop = ["ON SUPPRESSED", "PERMISSION", "EXPIRES", "USER", "CREATED", "KEY", "LAST USED"]
    return table_of(columns, map(_row, keys), drop=drop, utc=utc)


def _row(key: KeyRow) -> tuple[object, ...]:
    times = (key.created_at, key.last_used_at, "expired" if key.expired else key.expires_at)
    return key.id, key.name, key.user_id, key.preview, key.permission, _domain(key), key.on_suppressed, *times


@app.command("set")
def set_(
    *,
    key_id: KeyIdPrefix,
    allow_from: AllowFrom = None,
    allow_to: AllowTo = None,
    network: Network = None,
    per_minute: PerMinute = None,
    per_day: PerDay = None,
    expires: Expires = None,
    attachments: Attachments = None,
    html: Html = None,
    bulk: Bulk = None,
    on_suppressed: Suppressed = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Give a key its own rules, from the next message on.

    Each option replaces, empty takes away.
    """
    with admin.opened(config) as (_, store):
        changes = KeyChanges(
            allowed_senders=_list(allow_from),
            allowed_recipients=_list(allow_to),
            networks=_list(network),
            per_minute=_number(per_minute, "--per-minute"),
            per_day=_number(per_day, "--per-day"),
            expires_at=_expiry(expires),
            may_attach=attachments,
            may_html=html,
            may_bulk=bulk,
            on_suppressed="" if on_suppressed == "default" else on_suppressed,
        )
        if changes == KeyChanges():
            raise UsageError("nothing to set: see `key set --help`; `key show` shows a key's rules")
        key = store.set_key(store.find_key(key_id), changes)
    show(key, as_json=as_json, table=lambda: "\n".join(_rules(key, utc=False)))


@app.command("show")
def show_(key_id: KeyIdPrefix, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Show what a key may do.

    Also how much of it is used today, and which of its secrets are good.
    """
    with admin.opened(config) as (_, store):
        detail = store.show_key(key_id)
    show(detail, as_json=as_json, table=lambda: "\n".join(_described(detail, utc=utc)))


@app.command("rotate")
def rotate(key_id: KeyIdPrefix, keep: Keep = "7d", config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Give a key a new secret and show it, once.

    The old one stays good while clients change over.
    """
    with admin.opened(config) as (_, store):
        secret = store.rotate_key(store.find_key(key_id), _age(keep, "--keep"))
    show(dataclasses.asdict(secret), as_json=as_json, table=lambda: _hand_over(secret))


@app.command("secrets")
def secrets(key_id: KeyIdPrefix, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List earlier secrets of a key that are still good.

    Of each, the first characters of its SHA-256 are known.
    """
    with admin.opened(config) as (_, store):
        found = store.list_secrets(store.find_key(key_id).id)
    show(found, as_json=as_json, table=lambda: _secrets(found, utc=utc))


@app.command("revoke-secret")
def revoke_secret(
    key_id: KeyIdPrefix,
    secret_hash: Annotated[str, typer.Argument(metavar="HASH", help="Hash of the secret, or its first characters.")],
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """End an earlier secret of a key before its time."""
    with admin.opened(config) as (_, store):
        key = store.find_key(key_id)
        admin.confirm(f"End the secret {secret_hash} of key {key.id} ({plain(key.name)})?", yes=yes)
        gone = store.revoke_secret(key.id, secret_hash)
    show({"revoked": gone}, as_json=as_json, table=lambda: f"revoked secret {gone.hash} of key {key.id}")


@app.command("revoke")
def revoke(
    key_id: KeyIdPrefix,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Delete a key: it is refused at once.

    Also in sessions that are open.
    """
    with admin.opened(config) as (_, store):
        key = store.find_key(key_id)
        admin.confirm(f"Revoke key {key.id} ({plain(key.name)}, user {key.user_id})?", yes=yes)
        store.revoke_key(key.id)
    show({"revoked": key}, as_json=as_json, table=lambda: f"revoked {key.id} ({plain(key.name)})")


def _list(text: str | None) -> list[str] | None:
    """Split at commas, but not in a quoted local part."""
    if text is None:
        return None
    return [word for found in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', text) if (word := found.strip())]


def _number(text: str | None, option: str) -> int | None:
    if text is None or not text.strip():
        return None if text is None else 0
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip(), re.ASCII):
        raise UsageError(f"{option}: expected a number above 0, or nothing for no limit, got {text!r}")
    return int(text)


def _age(text: str, option: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,4})([mhdw])|0", text.strip(), re.ASCII)
    if not found:
        raise UsageError(f"{option}: expected a time such as 12h or 7d, got {text!r}")
    return timedelta(**{admin.UNITS[found[2]]: int(found[1])}) if found[1] else timedelta()


def _expiry(text: str | None) -> datetime | Literal[""] | None:
    if text is None:
        return None
    if text.strip() in {"", "never"}:
        return ""
    now = datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        at = now + _age(text, "--expires")
    if at <= now:
        raise UsageError(f"--expires: {text!r} is in the past; `key revoke` ends a key now")
    return at


def _expiry_of(key: KeyRow, *, utc: bool) -> str:
    return ("expired " if key.expired else "") + on_page(key.expires_at, utc=utc)


def _rules(key: KeyRow, *, utc: bool) -> Iterator[str]:
    yield f"key {key.id} ({plain(key.name)}, user {plain(key.user_id)})"
    yield f"domain: {_domain(key)}"
    for name, listed in (("from", key.allowed_senders), ("to", key.allowed_recipients), ("network", key.networks)):
        yield f"{name}: {'any' if listed is None else plain(listed)}"
    for name, number in (("per minute", key.per_minute), ("per day", key.per_day)):
        yield f"{name}: {'not limited by the key' if number is None else number}"
    yield f"expires: {_expiry_of(key, utc=utc) or 'never'}"
    for name, may in (("attachments", key.may_attach), ("html", key.may_html), ("bulk", key.may_bulk)):
        yield f"{name}: {'yes' if may else 'no'}"
    yield f"on suppressed: {key.on_suppressed or 'as configured'}"


def _described(detail: KeyDetail, *, utc: bool) -> Iterator[str]:
    key = detail.key
    yield from _rules(key, utc=utc)
    if detail.sent_today is not None:
        yield f"sent today (UTC): {detail.sent_today} of {key.per_day}"
    yield f"created: {on_page(key.created_at, utc=utc)}"
    yield f"last used: {on_page(key.last_used_at, utc=utc) or 'never'}"
    yield f"secret: {plain(key.preview)}"
    for secret in detail.secrets:
        yield f"earlier secret: {_shown(secret, utc=utc)}"


def _shown(secret: SecretRow, *, utc: bool) -> str:
    until = on_page(secret.expires_at, utc=utc) or "revoked"
    return f"{secret.hash}, replaced {on_page(secret.replaced_at, utc=utc)}, good until {until}"


def _secrets(found: list[SecretRow], *, utc: bool) -> str:
    rows = [(secret.hash, secret.replaced_at, secret.expires_at) for secret in found]
    return table_of(["HASH", "REPLACED", "GOOD UNTIL"], rows, utc=utc)


def _hand_over(secret: NewSecret) -> str:
    older = [f"Still good: {_shown(each, utc=False)}" for each in secret.older] or [
        "No earlier secret is good any more."
    ]
    told = "Keep it now: it is not stored and cannot be shown again."
    return "\n".join([f"new secret of key {secret.id}:", "", f"    {secret.token}", "", told, *older])


def _domain(key: KeyRow) -> str:
    if not key.restricted:
        return "any"
    return key.domain or "gone: sends nothing"
