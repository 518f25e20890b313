"""`domain`: the domains that users may send from."""

from __future__ import annotations

from typing import Annotated

import typer

from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, show, table_of

app = typer.Typer(help="Domains that users may send from.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of the domain, such as example.org, or its id.")]
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
    """Add a domain to a user. Beside OpenSend use its dashboard instead: it also makes the DKIM keys."""
    with admin.opened(config) as (_, store):
        domain = store.add_domain(store.ensure_user(user), name, verified=verified)
    show(domain, as_json=as_json, table=lambda: f"added {domain.name} ({domain.status}) to user {domain.user_id}")


@app.command("verify")
def verify(name: Name, user: admin.OnlyOf = None, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Vouch for a domain: from now on its user may send from it."""
    with admin.opened(config) as (_, store):
        domain = store.verify_domain(store.find_domain(name, user))
    show(domain, as_json=as_json, table=lambda: f"verified {domain.name} of user {domain.user_id}")


@app.command("list")
def list_(user: admin.OnlyOf = None, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List domains, verified ones first."""
    with admin.opened(config) as (_, store):
        domains = store.list_domains(user)
    show(
        domains,
        as_json=as_json,
        table=lambda: table_of(
            ["ID", "DOMAIN", "USER", "STATUS", "KEYS", "CREATED"],
            [(each.id, each.name, each.user_id, each.status, each.keys, each.created_at) for each in domains],
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
