"""`doctor`: what is wrong on this host, why it matters, and what mends it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from opensend_milter import config as configuration
from opensend_milter.adapters.admin.findings import keep
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.admin.verification import connect_as_owner
from opensend_milter.adapters.postgres.link import connect, conninfo_for
from opensend_milter.app.examining import examination, made_key, some_user
from opensend_milter.app.switching import before_switching
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import AsJson, ConfigPath, plain, progress, show
from opensend_milter.core.address import normal_domain
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Check, Finding, Result, chosen, examine
from opensend_milter.host.examining.host_checks import Site
from opensend_milter.host.examining.probe import Draft, Probe

MARKS = {Result.GOOD: "ok", Result.WARNING: "warning", Result.PROBLEM: "PROBLEM", Result.SKIPPED: "skipped"}
BOXES = {Result.GOOD: "[x]", Result.WARNING: "[!]", Result.PROBLEM: "[ ]", Result.SKIPPED: "[-]"}


ProbeFlag = Annotated[
    bool, typer.Option("--probe", help="Also make a key for the moment and send a real message through every port.")
]
Sender = Annotated[
    str | None, typer.Option("--from", metavar="ADDRESS", help="Of the probe; else postmaster@ a verified domain.")
]
Recipient = Annotated[str | None, typer.Option("--to", metavar="ADDRESS", help="Of the probe; else the sender itself.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the probe's delivery.")]
Checklist = Annotated[bool, typer.Option("--checklist", help="Only the security checklist, to be ticked.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="NAME", help="A check, such as postfix.relay, or a part.")
]
KeyFile = Annotated[Path | None, typer.Option("--key-file", help="File with an API key that must be good: the canary.")]
PostfixDir = Annotated[
    Path | None, typer.Option("--postfix-dir", help="Of our instance; else postfix/ beside the configuration.")
]
DovecotDir = Annotated[
    Path | None, typer.Option("--dovecot-dir", help="Of our instance; else dovecot/ beside the configuration.")
]
Nameserver = Annotated[
    str, typer.Option("--nameserver", metavar="ADDRESS[:PORT]", help="Ask this one, not the system's.")
]
Every = Annotated[bool, typer.Option("--all", help="Also what is good.")]
Store = Annotated[bool, typer.Option("--store", help="Also put down what was found, where the console shows it.")]
BeforeOpensend = Annotated[
    bool, typer.Option("--before-opensend", help="Not this host: OpenSend's database, before `db migrate`.")
]


def doctor(
    *,
    probe: ProbeFlag = False,
    sender: Sender = None,
    recipient: Recipient = None,
    wait_s: Wait = 30.0,
    checklist: Checklist = False,
    only: Only = None,
    key_file: KeyFile = None,
    postfix_dir: PostfixDir = None,
    dovecot_dir: DovecotDir = None,
    nameserver: Nameserver = "",
    every: Every = False,
    store: Store = False,
    before_opensend: BeforeOpensend = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong on this host, why, and what mends it.

    It changes nothing, but for what --store puts down. Exit code 1: there is a problem; 78: the configuration cannot be
    read.
    """
    with configured(config) as settings, ExitStack() as opened:
        if store and (only or checklist or before_opensend):
            raise UsageError(
                "--store puts down all that is found: it goes with no --only, --checklist, --before-opensend"
            )
        if before_opensend:
            other = (probe, sender, recipient, checklist, key_file, postfix_dir, dovecot_dir, nameserver)
            checks = _beside_opensend(opened, settings, is_alone=not any(other))
        else:
            path = configuration.path_in_force(config)
            asked = cache(partial(_asked, settings, opened))
            site = Site(
                config=settings,
                config_path=path,
                postfix_dir=postfix_dir or path.parent / "postfix",
                dovecot_dir=dovecot_dir or path.parent / "dovecot",
                key_file=key_file,
                made_key=(lambda: made_key(asked(), some_user(asked()))) if probe else None,
            )
            checks = opened.enter_context(examination(site, nameserver))
            if site.made_key:
                draft = partial(_draft, asked, sender, recipient)
                find = partial(_found, asked)
                made = Probe(config=settings, draft=draft, made_key=site.made_key, find=find, wait_s=wait_s)
                checks += made.checks()
        selected = [check for check in chosen(checks, only or []) if check.security or not checklist]
        with progress() as say:
            findings = [*_watched(examine(checks, selected), len(selected), say)]
        if store:
            with connect_as_owner(settings.database, application_name="opensend-doctor") as connection:
                keep(connection, socket.gethostname(), findings)
    _conclude(findings, _ticked if checklist else partial(_listed, every=every or bool(only)), as_json=as_json)


def _watched(findings: Iterator[Finding], count: int, say: Callable[[str], None]) -> Iterator[Finding]:
    """Say how far it is: some checks wait for a server that does not answer."""
    for number, one in enumerate(findings, start=1):
        say(f"{number} of {count}: {one.name}")
        yield one


def _beside_opensend(opened: ExitStack, settings: configuration.Config, *, is_alone: bool) -> list[Check]:
    if not is_alone:
        raise UsageError("--before-opensend goes with --only, --all, --json and --config: it looks at no host")
    return opened.enter_context(before_switching(settings))


def _conclude(findings: Sequence[Finding], drawn: Callable[[Sequence[Finding]], list[str]], *, as_json: bool) -> None:
    ended = {result: sum(one.result is result for one in findings) for result in Result}
    show(
        {"problems": ended[Result.PROBLEM], "warnings": ended[Result.WARNING], "findings": findings},
        as_json=as_json,
        table=lambda: "\n".join([*drawn(findings), _summary(ended)]),
    )
    if ended[Result.PROBLEM]:
        raise typer.Exit(1)


def _asked(settings: configuration.Config, opened: ExitStack) -> AdminStore:
    info = conninfo_for(settings.database.url, None, None)
    connection = opened.enter_context(connect(info, application_name="opensend-doctor"))
    return AdminStore(connection, makes_users=False)


def _found(store: Callable[[], AdminStore], queue_id: str) -> tuple[str, str] | None:
    return store().find_email(queue_id)


def _draft(store: Callable[[], AdminStore], sender: str | None, recipient: str | None) -> Draft:
    user = some_user(store())
    if sender is None:
        verified = [domain.name for domain in store().list_domains(user) if domain.status == "verified"]
        # As every SMTP client can say it.
        domains = [normal_domain(name) or name for name in verified]
        sender = f"postmaster@{domains[0]}" if domains else "postmaster@localhost"
    return Draft(sender=sender, recipient=recipient or sender)


def _listed(findings: Sequence[Finding], *, every: bool) -> list[str]:
    lines = []
    for one in findings:
        if one.result is Result.GOOD and not every:
            continue
        first, *more = one.seen.splitlines() or [""]
        lines.append(f"{MARKS[one.result]:8} {one.name}: {plain(first)}")
        lines += [f"{'':8}   {plain(line)}" for line in more]
        if one.result in {Result.PROBLEM, Result.WARNING}:
            lines.append(f"{'':8}   why:  {one.why}")
            lines += [f"{'':8}   mend: {plain(line)}" for line in one.mend.splitlines()]
    return lines


def _ticked(findings: Sequence[Finding]) -> list[str]:
    return [f"{BOXES[one.result]} {one.name}: {plain(one.seen)}" for one in findings]


def _summary(ended: dict[Result, int]) -> str:
    return ", ".join(f"{count} {result.value}" for result, count in ended.items())
