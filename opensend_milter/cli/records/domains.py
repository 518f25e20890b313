"""`domain`: the domains that users may send from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from opensend_milter.adapters.admin.deliveries import DomainChanges, DomainSettings
from opensend_milter.adapters.admin.verification import Domain, connect_as_owner
from opensend_milter.app.verifying import Verification, Verifier
from opensend_milter.cli import admin
from opensend_milter.cli.exits import EX_TEMPFAIL, EX_USAGE, configured, fail
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, plain, progress, show, table_of
from opensend_milter.config.option import HOSTNAME, REGION, WORD, Check
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.errors import UsageError

app = typer.Typer(help="Domains that users may send from.", no_args_is_help=True)


Way = Literal["configured", CourierName]
"""A courier, as it is typed."""
Name = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="Name of the domain, such as example.org, or an end of its id.")
]
Verified = Annotated[
    bool, typer.Option("--verified", help="You vouch for it: mail may be sent from it at once. Nothing is looked up.")
]
Force = Annotated[bool, typer.Option("--force", help="Also where keys are bound to it; they can send nothing then.")]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of the domain, such as example.org.")],
    verified: Verified = False,
    user: admin.Owner = admin.DEFAULT_USER,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Add a domain to a user.

    Beside OpenSend use its dashboard instead: it also makes the DKIM keys.
    """
    with admin.opened(config) as (_, store):
        domain = store.add_domain(store.ensure_user(user), name, verified=verified)
    show(domain, as_json=as_json, table=lambda: f"added {domain.name} ({domain.status}) to user {domain.user_id}")


@app.command("verify")
def verify(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="DOMAIN", help="Name of the domain, or an end of its id.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All domains: for a timer.")] = False,
    assume: Annotated[
        bool, typer.Option("--assume-verified", help="You vouch for it; nothing is looked up. For closed networks.")
    ] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="A verified domain whose ownership record is gone may not send any more.")
    ] = False,
    selector: Annotated[
        list[str] | None, typer.Option("--selector", help="DKIM selector in use; may be given several times.")
    ] = None,
    nameserver: Annotated[
        str, typer.Option("--nameserver", metavar="ADDRESS[:PORT]", help="Ask this one, not the system's.")
    ] = "",
    user: admin.OnlyOf = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Ask DNS whose a domain is, and say which records are missing.

    Whose owner is proved is verified. Beside OpenSend it verifies nothing: OpenSend does, in its dashboard. Exit code
    1: the ownership record is not there, or OpenSend has not verified the domain; 75: DNS does not answer. With
    --all: 0 unless DNS answers nothing.
    """
    if every == (name is not None):
        fail("name one domain, or use --all", EX_USAGE)
    with _verifier(config, nameserver) as verifier:
        domains = verifier.domains(name, user)
        if assume:
            found = [verifier.vouch(domain) for domain in domains]
        else:
            found = list(_verified(verifier, domains, selector or (), withdraw=withdraw))
    show(
        found if every else found[0],
        as_json=as_json,
        table=lambda: "\n".join(line for one in found for line in _findings(one)) or "no domain",
    )
    if found and all(one.is_unanswered for one in found):
        raise typer.Exit(EX_TEMPFAIL)
    if not every and not found[0].is_proved:
        raise typer.Exit(1)


def _verified(
    verifier: Verifier, domains: Sequence[Domain], selectors: Sequence[str], *, withdraw: bool
) -> Iterator[Verification]:
    with progress() as say:
        for number, domain in enumerate(domains):
            say(f"{number:,} of {len(domains):,}: asking DNS about {domain.name}")
            yield verifier.verify(domain, selectors, withdraw=withdraw)


@contextmanager
def _verifier(path: Path | None, nameserver: str) -> Iterator[Verifier]:
    """Connect as the configured URL says; errors of ours end the program with their exit code."""
    with (
        configured(path) as settings,
        connect_as_owner(settings.database, application_name="opensend-milter-domains") as connection,
    ):
        yield Verifier(config=settings, connection=connection, nameserver=nameserver)


def _findings(found: Verification) -> Iterator[str]:
    """Draw one domain for people; what DNS said was written by strangers."""
    yield f"{found.name} of user {found.user_id}: {found.status}" + (f" ({found.note})" if found.note else "")
    for record in found.records:
        yield f"  {record.kind:9} {record.state.value:10} {plain(record.seen)}"
        if record.line:
            yield f"{'':23}add: {record.line}"


@app.command("set")
def set_(
    *,
    name: Name,
    courier: Annotated[
        Way | None, typer.Option("--courier", help="How its messages leave; `configured`: as the configuration says.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Of SES.")] = None,
    configuration_set: Annotated[
        str | None, typer.Option("--configuration-set", help="Of SES; empty: as the configuration says.")
    ] = None,
    opens: Annotated[bool | None, typer.Option("--track-opens/--no-track-opens", help="Count opens.")] = None,
    clicks: Annotated[bool | None, typer.Option("--track-clicks/--no-track-clicks", help="Count clicks.")] = None,
    tracking_host: Annotated[
        str | None, typer.Option("--tracking-host", help="Host of the links; empty: that of http.public_url.")
    ] = None,
    one_click: Annotated[
        bool | None,
        typer.Option("--one-click/--no-one-click", help="Add List-Unsubscribe to messages with one recipient."),
    ] = None,
    user: admin.OnlyOf = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Set what a domain asks of our worker; without options, show it."""
    with admin.delivering(config) as (store, deliveries):
        changes = DomainChanges(
            courier="" if courier == "configured" else courier,
            region=_matching(region, REGION, "--region"),
            configuration_set=_matching(configuration_set, WORD, "--configuration-set"),
            track_opens=opens,
            track_clicks=clicks,
            tracking_host=_matching(tracking_host, HOSTNAME, "--tracking-host"),
            one_click=one_click,
        )
        found = deliveries.set_domain(store.find_domain(name, user).id, changes)
    show(found, as_json=as_json, table=lambda: "\n".join(_lines(found)))


def _matching(text: str | None, check: Check[str], option: str) -> str | None:
    if text is not None and not check.passes(text):
        raise UsageError(f"{option}: expected {check.expected}, got {text!r}")
    return text


def _lines(settings: DomainSettings) -> Iterator[str]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        yield f"{field.name}: {'configured' if value is None and field.name == 'courier' else plain(value)}"


@app.command("list")
def list_(user: admin.OnlyOf = None, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List domains, verified ones first."""
    with admin.opened(config) as (_, store):
        domains = store.list_domains(user)
    show(
        domains,
        as_json=as_json,
        table=lambda: table_of(
            ["ID", "DOMAIN", "USER", "STATUS", "KEYS", "CREATED"],
            [(each.id, each.name, each.user_id, each.status, each.keys, each.created_at) for each in domains],
            drop=["KEYS", "CREATED", "USER"],
            utc=utc,
        ),
    )


@app.command("remove")
def remove(
    *,
    name: Name,
    user: admin.OnlyOf = None,
    force: Force = False,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Remove a domain: mail from it is refused from now on."""
    with admin.opened(config) as (_, store):
        domain = store.find_domain(name, user)
        admin.confirm(f"Remove {domain.name} of user {domain.user_id}?", yes=yes)
        store.remove_domain(domain, force=force)
    show({"removed": domain}, as_json=as_json, table=lambda: f"removed {domain.name} of user {domain.user_id}")
