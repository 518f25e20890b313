"""`email`: what was taken, what became of it, and what was refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import typer

from opensend_milter.adapters.admin_rows import EmailDetail, RefusalRow
from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, plain, show, table_of
from opensend_milter.core.model import Rule

app = typer.Typer(help="Emails: what was taken, what became of it, what was refused.", no_args_is_help=True)

Status = Annotated[
    str | None,
    typer.Option("--status", help="Only with this status: queued, processing, sent, delivered, bounced, failed, ..."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the email, or Postfix's queue id.")]
OnlyRule = Annotated[Rule | None, typer.Option("--rule", help="Only by this rule.")]


@app.command("list")
def list_(
    *,
    status: Status = None,
    user: admin.OnlyOf = None,
    since: admin.Since = None,
    limit: admin.Limit = 50,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List emails, latest first."""
    with admin.opened(config) as (_, store):
        rows = store.list_emails(status=status, user_id=user, since=admin.moment(since), limit=limit)
    columns = ["ID", "QUEUE ID", "CREATED", "STATUS", "FROM", "TO", "SUBJECT"]
    show(
        rows,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (row.id, row.queue_id, row.created_at, row.status, row.sender, row.recipients, row.subject)
                for row in rows
            ],
        ),
    )


@app.command("show")
def show_(email_id: Id, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Show everything known of one email, or why a queue id was refused; contents are not shown."""
    with admin.opened(config) as (_, store):
        detail = store.show_email(email_id)
    show(detail, as_json=as_json, table=lambda: "\n".join(_lines(detail)))


@app.command("refusals")
def refusals(
    *,
    user: admin.OnlyOf = None,
    rule: OnlyRule = None,
    since: admin.Since = None,
    limit: admin.Limit = 50,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List messages that were not taken, latest first, with the rule and the answer that the sender got."""
    with admin.opened(config) as (_, store):
        rows = store.list_refusals(rule=rule, user_id=user, since=admin.moment(since), limit=limit)
    columns = ["QUEUE ID", "REFUSED", "RULE", "ANSWER", "KEY", "CLIENT", "FROM", "TO"]
    show(
        rows,
        as_json=as_json,
        table=lambda: table_of(
            columns,
            [
                (
                    row.queue_id,
                    row.refused_at,
                    row.rule,
                    _answer(row),
                    row.key_id,
                    row.client_address,
                    row.sender,
                    row.recipients,
                )
                for row in rows
            ],
        ),
    )


def _answer(row: RefusalRow) -> str:
    return f"{row.code} {row.enhanced} {row.text}"


def _lines(detail: EmailDetail) -> Iterator[str]:
    sections = {
        "email": detail.email,
        "submission": detail.submission,
        "job": detail.job,
        **{f"event {event.type}": event for event in detail.events},
        **{f"refusal {refusal.rule}": refusal for refusal in detail.refusals},
    }
    for title, row in sections.items():
        if row is not None:
            yield title
            for field in dataclasses.fields(row):
                value = getattr(row, field.name)
                if value not in (None, [], {}, ""):
                    yield f"  {field.name}: {plain(value)}"
