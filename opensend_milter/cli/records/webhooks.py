"""`webhook`: who is told what becomes of a user's mail."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.admin.webhooks import Status, WebhookAdmin, WebhookRow
from opensend_milter.adapters.postgres.link import connect, conninfo_for
from opensend_milter.adapters.postgres.webhooks import lease_of
from opensend_milter.adapters.webhook_calls import HttpMessenger
from opensend_milter.cli import admin
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, counting, plain, progress, show, table_of
from opensend_milter.config import Config
from opensend_milter.core.errors import TemporaryError, UsageError
from opensend_milter.core.webhook import Answer, Event, EventId, body_of, event_types, headers_of

app = typer.Typer(help="Who is told what becomes of a user's mail.", no_args_is_help=True)

EX_NOT_TAKEN = 1
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the webhook, or either end of it.")]
OnlyStatus = Annotated[Status | None, typer.Option("--status", help="Only of this status.")]


@contextmanager
def _opened(path: Path | None, *, ours: bool = False) -> Iterator[tuple[Config, AdminStore, WebhookAdmin]]:
    """Connect; `ours`: what OpenSend does itself where it is there."""
    with configured(path) as config:
        if ours and config.profile == "opensend":
            raise UsageError(
                "beside OpenSend (profile: opensend) it is OpenSend that calls webhooks: use its dashboard"
            )
        info = conninfo_for(config.database.url, None, None)
        with connect(info, application_name="opensend-milter-admin") as connection:
            store = AdminStore(connection, makes_users=config.profile == "standalone")
            yield config, store, WebhookAdmin(connection)


def _messenger(config: Config) -> HttpMessenger:
    return HttpMessenger(timeout_s=config.webhooks.timeout_s, allow_private=config.webhooks.allow_private)


@app.command("add")
def add(
    *,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where it listens: https://...")],
    events: Annotated[
        str, typer.Option("--events", metavar="TYPES", help="Such as email.sent,email.bounced; all unless given.")
    ] = "",
    user: admin.Owner = admin.DEFAULT_USER,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Add a webhook of a user, and show its secret.

    Its receiver needs that.
    """
    with _opened(config, ours=True) as (settings, store, webhooks):
        types = event_types(events.split(","))
        try:
            _messenger(settings).vet(url)
        except TemporaryError as error:
            sys.stderr.write(f"opensend-milter: warning: {error}\n")
        row = webhooks.add(store.ensure_user(user), url, types)
        secret = webhooks.secret(row)
    show(
        {"webhook": row, "secret": secret},
        as_json=as_json,
        table=lambda: f"added {row.id} for user {row.user_id}: {plain(row.event_types)}\nsecret: {secret}",
    )


@app.command("list")
def list_(user: admin.OnlyOf = None, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List webhooks with what came of their latest attempt."""
    with _opened(config) as (_, _, webhooks):
        rows = webhooks.list_webhooks(user)
    show(
        rows,
        as_json=as_json,
        table=lambda: table_of(
            ["ID", "USER", "STATUS", "LATEST", "CODE", "AT", "PENDING", "EVENTS", "URL"],
            [
                (row.id, row.user_id, row.status, row.last_status, row.last_code, row.last_attempted_at, row.pending,
                 row.event_types, row.url)
                for row in rows
            ],
            drop=["CODE", "USER", "EVENTS", "PENDING", "AT"],
            utc=utc,
        ),
    )  # fmt: skip


@app.command("remove")
def remove(webhook_id: Id, yes: admin.Yes = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Remove a webhook with all its deliveries."""
    with _opened(config) as (_, _, webhooks):
        row = webhooks.find(webhook_id)
        admin.confirm(f"Remove {plain(row.url)} of user {row.user_id}?", yes=yes)
        webhooks.remove(row)
    show({"removed": row}, as_json=as_json, table=lambda: f"removed {row.id}: {plain(row.url)}")


@app.command("secret")
def secret(webhook_id: Id, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Show the secret that its receiver needs."""
    with _opened(config, ours=True) as (_, _, webhooks):
        found = webhooks.secret(webhooks.find(webhook_id))
    show({"secret": found}, as_json=as_json, table=lambda: found)


@app.command("rotate")
def rotate(webhook_id: Id, yes: admin.Yes = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Give it a new secret; for 24 hours the old one signs as well."""
    with _opened(config, ours=True) as (_, _, webhooks):
        row = webhooks.find(webhook_id)
        admin.confirm(f"Give {plain(row.url)} a new secret?", yes=yes)
        row = webhooks.rotate(row)
        found = webhooks.secret(row)
    show(
        {"webhook": row, "secret": found},
        as_json=as_json,
        table=lambda: f"secret: {found}\nThe one before signs as well for 24 hours.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of a test."""

    event_id: EventId
    taken: bool
    code: int | None
    latency_ms: float
    text: str


@app.command("test")
def try_(webhook_id: Id, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Send it a signed event of type `webhook.test`.

    Exit code 1: it does not take it.
    """
    with _opened(config, ours=True) as (settings, _, webhooks):
        row = webhooks.find(webhook_id)
        with progress() as say:
            say("waiting for the answer")
            tried = _try(_messenger(settings), row, webhooks.signing())
    said = tried.code or "no answer"
    show(
        tried,
        as_json=as_json,
        table=lambda: f"{'taken' if tried.taken else 'not taken'}: {said} in {tried.latency_ms:.0f} ms\n{tried.text}",
    )
    if not tried.taken:
        raise typer.Exit(EX_NOT_TAKEN)


def _try(messenger: HttpMessenger, row: WebhookRow, signing: bytes) -> Tried:
    now = datetime.now(UTC)
    event = Event(id=EventId(str(uuid4())), type="webhook.test", at=now, email_id=None, payload={"webhook_id": row.id})
    body = body_of(event)
    began_at = time.monotonic()
    answer: Answer = messenger.post(row.url, headers_of(row.webhook, event.id, body, signing=signing, now=now), body)
    return Tried(
        event_id=event.id,
        taken=answer.is_yes,
        code=answer.code,
        latency_ms=round((time.monotonic() - began_at) * 1000, 1),
        text=plain(next(iter(answer.text.splitlines()), "")),
    )


@app.command("replay")
def replay(  # noqa: PLR0917  # typer calls it by name
    webhook_id: Id,
    since: admin.Since = None,
    event: Annotated[
        str | None, typer.Option("--event", metavar="EVENT_ID", help="Only of this event: its id, or either end of it.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were given up.")] = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Make deliveries due again.

    Say which by --since, --event or --failed, or several of them.
    """
    with _opened(config, ours=True) as (settings, _, webhooks):
        if since is None and event is None and not failed:
            raise UsageError("say what to replay: --since WHEN, --event EVENT_ID, --failed, or several of them")
        row = webhooks.find(webhook_id)
        lease = lease_of(settings.webhooks.timeout_s)
        with progress() as say:
            say("making deliveries due again")
            count = webhooks.replay(row, event_id=event, since=admin.moment(since), failed=failed, lease=lease)
    waits = "" if row.status == "active" else f"; they wait, because the webhook is {row.status}"
    show({"replayed": count}, as_json=as_json, table=lambda: f"{count} deliveries are due again{waits}")


@app.command("deliveries")
def deliveries(
    *,
    webhook_id: Id,
    status: OnlyStatus = None,
    limit: admin.Limit = 50,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries to a webhook, newest first."""
    with _opened(config) as (_, _, webhooks), progress() as say:
        found = webhooks.deliveries(
            webhooks.find(webhook_id),
            status=status,
            limit=None if every else limit,
            progress=counting("found", say),
        )
    columns = ["EVENT", "TYPE", "EMAIL", "STATUS", "ATTEMPTS", "CODE", "AT", "NEXT", "ANSWER"]
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (row.event_id, row.type, row.email_id, row.status, row.attempt, row.code, row.attempted_at,
                 row.next_retry_at, (row.text or "")[:60])
                for row in found.rows
            ],
            drop=["ATTEMPTS", "ANSWER", "NEXT", "EMAIL", "CODE"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )  # fmt: skip
