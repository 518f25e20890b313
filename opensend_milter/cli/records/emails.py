"""`email`: what was taken, what became of it, and what was refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from opensend_milter.adapters.admin.deliveries import AT_ONCE, Done, Ending, Unsent
from opensend_milter.adapters.admin.rows import EmailDetail, EmailStatus, RefusalRow
from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, counting, on_page, plain, progress, show, table_of
from opensend_milter.core.actions import Stood
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import EmailId
from opensend_milter.core.rules import Rule

app = typer.Typer(help="Emails: what was taken, what became of it, what was refused.", no_args_is_help=True)

EITHER_END = "its first 13 characters or its last 12, or Postfix's queue id"
Status = Annotated[
    EmailStatus | None,
    typer.Option("--status", metavar="STATUS", help=f"Only with this one: {', '.join(get_args(EmailStatus))}."),
]
Id = Annotated[
    str, typer.Argument(metavar="ID", help=f"Id of the email, {EITHER_END}; or the ref or the address in a refusal.")
]
Ids = Annotated[list[str], typer.Argument(metavar="[ID]...", help=f"Ids of emails, {EITHER_END}.")]
SomeIds = Annotated[list[str], typer.Argument(metavar="ID...", help=f"Ids of emails, {EITHER_END}.")]
Why = Annotated[str, typer.Option("--reason", help="For the record and the event.")]
OnlyRule = Annotated[
    Rule | None, typer.Option("--rule", metavar="RULE", help="Only by this rule, such as from-unverified.")
]


@app.command("list")
def list_(
    *,
    status: Status = None,
    user: admin.OnlyOf = None,
    since: admin.Since = None,
    limit: admin.Limit = 50,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List emails, newest first."""
    with admin.opened(config) as (_, store), progress() as say:
        found = store.list_emails(
            status=status,
            user_id=user,
            since=admin.moment(since),
            limit=None if every else limit,
            progress=counting("found", say),
        )
    columns = ["ID", "QUEUE ID", "CREATED", "STATUS", "FROM", "TO", "SUBJECT"]
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (row.id, row.queue_id, row.created_at, row.status, row.sender, row.recipients, row.subject)
                for row in found.rows
            ],
            drop=["QUEUE ID", "FROM", "SUBJECT", "CREATED"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )


@app.command("show")
def show_(email_id: Id, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Show all that is known of an email, or why it was refused.

    Contents are not shown.
    """
    with admin.opened(config) as (_, store):
        detail = store.show_email(email_id)
    show(detail, as_json=as_json, table=lambda: "\n".join(_lines(detail, utc=utc)))


@app.command("refusals")
def refusals(
    *,
    user: admin.OnlyOf = None,
    rule: OnlyRule = None,
    since: admin.Since = None,
    limit: admin.Limit = 50,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List messages that were not taken, newest first.

    Each with the rule and the answer that the sender got.
    """
    with admin.opened(config) as (_, store), progress() as say:
        found = store.list_refusals(
            rule=rule,
            user_id=user,
            since=admin.moment(since),
            limit=None if every else limit,
            progress=counting("found", say),
        )
    columns = ["REF", "QUEUE ID", "REFUSED", "RULE", "ANSWER", "KEY", "CLIENT", "FROM", "TO"]
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (
                    row.ref or "",
                    row.queue_id,
                    row.refused_at,
                    row.rule,
                    _answer(row),
                    row.key_id,
                    row.client_address,
                    row.sender,
                    row.recipients,
                )
                for row in found.rows
            ],
            drop=["CLIENT", "KEY", "FROM", "ANSWER", "QUEUE ID", "TO"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )


@app.command("retry")
def retry(
    *,
    emails: Ids = [],  # noqa: B006  # typer's way of saying none
    failed: Annotated[bool, typer.Option("--failed", help="All that failed and whose bytes are still kept.")] = False,
    bounced: Annotated[
        bool, typer.Option("--bounced", help="All that the next hop refused for unknown recipients: nobody has them.")
    ] = False,
    since: admin.Since = None,
    user: admin.OnlyOf = None,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Try again now.

    What failed, what waits for its next attempt, what is uncertain. An uncertain email may have been delivered:
    whoever retries it takes it upon himself that it arrives twice.
    """
    with admin.delivering(config) as (_, store):
        if [bool(emails), failed, bounced].count(True) != 1:
            raise UsageError("name emails by their ids, or say --failed or --bounced")
        if emails and (since or user):
            raise UsageError("--since and --user go with --failed and --bounced")
        if emails:
            ids = list(store.find(emails).values())
        else:
            status: Unsent = "failed" if failed else "bounced"
            with progress() as say:
                say(f"looking for {status} emails")
                ids = store.unsent(status, user_id=user, since=admin.moment(since))
            if ids:
                admin.confirm(f"Try {len(ids)} {status} emails again?", yes=yes)
        _tell("to be tried again", _in_batches(ids, store.retry), as_json=as_json)


@app.command("fail")
def fail(
    emails: SomeIds, reason: Why = "failed by an operator", config: ConfigPath = None, as_json: AsJson = False
) -> None:
    """Give up what waits or is uncertain.

    It becomes `failed`, with the event and the webhooks.
    """
    _end(emails, "failed", reason, config, as_json=as_json)


@app.command("mark-sent")
def mark_sent(
    emails: SomeIds, reason: Why = "marked as sent by an operator", config: ConfigPath = None, as_json: AsJson = False
) -> None:
    """Say that an uncertain email was sent.

    Somebody asked the next hop, or the recipient.
    """
    _end(emails, "sent", reason, config, as_json=as_json)


@app.command("cancel")
def cancel(emails: SomeIds, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Take back what has not begun to be sent.

    Scheduled emails, and those that wait.
    """
    _end(emails, "canceled", "canceled by an operator", config, as_json=as_json)


def _end(emails: Sequence[str], ending: Ending, reason: str, config: Path | None, *, as_json: bool) -> None:
    with admin.delivering(config) as (_, store):
        ids = list(store.find(emails).values())
        _tell(ending, _in_batches(ids, lambda some: store.end(some, ending, reason)), as_json=as_json)


def _in_batches(ids: Sequence[EmailId], act: Callable[[Sequence[EmailId]], Done]) -> Done:
    """Act on some at a time, and say how far it is where a person watches."""
    done: dict[EmailId, Stood] = {}
    not_done: dict[str, str] = {}
    with progress() as say:
        for first in range(0, len(ids), AT_ONCE):
            if len(ids) > AT_ONCE:
                say(f"{first:,} of {len(ids):,}")
            found = act(ids[first : first + AT_ONCE])
            done |= found.done
            not_done |= found.not_done
    return Done(done, not_done)


def _tell(what: str, found: Done, *, as_json: bool) -> None:
    """Show what was done; exit 1 where something was not."""
    lines = [f"{what}: {len(found.done)}", *(f"left: {email_id}: {why}" for email_id, why in found.not_done.items())]
    show({"done": list(found.done), "left": found.not_done}, as_json=as_json, table=lambda: "\n".join(lines))
    if found.not_done:
        raise typer.Exit(1)


def _answer(row: RefusalRow) -> str:
    return f"{row.code} {row.enhanced} {row.text}"


def _lines(detail: EmailDetail, *, utc: bool) -> Iterator[str]:
    sections = (
        ("email", detail.email),
        ("submission", detail.submission),
        ("job", detail.job),
        *((f"recipient {plain(one.address)}", one) for one in detail.recipients),
        *((f"event {event.type}", event) for event in detail.events),
        *((f"refusal {refusal.rule}", refusal) for refusal in detail.refusals),
    )
    for title, row in sections:
        if row is not None:
            yield title
            for field in dataclasses.fields(row):
                value = getattr(row, field.name)
                if value not in (None, [], {}, ""):
                    yield f"  {field.name}: {on_page(value, utc=utc)}"
