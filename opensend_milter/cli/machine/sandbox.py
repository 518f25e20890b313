"""`sandbox`: the whole product privately under one directory, to try it, to test it, to measure it."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from opensend_milter import app as composition
from opensend_milter.cli import exits, output
from opensend_milter.cli.output import AsJson
from opensend_milter.cli.snippets import SNIPPETS, Access, Client
from opensend_milter.config import PATH_VARIABLE
from opensend_milter.host.requirements import Lacking
from opensend_milter.host.sandbox import (
    first_mail as sandbox_mail,
    lifecycle as sandbox,
    state as sandbox_state,
)

app = typer.Typer(help="The whole product privately, under one directory.", no_args_is_help=True)

Directory = Annotated[Path, typer.Option("--dir", envvar="SANDBOX_DIR", help="Where all of it lives.")]
Queue = Annotated[
    sandbox_state.QueueKind | None, typer.Option("--queue", help="Unless given: as it was; a new one: postgres.")
]
Purge = Annotated[bool, typer.Option("--purge", help="Remove the directory with all data.")]
Recipient = Annotated[str, typer.Option("--to", help="Recipient.")]
Sender = Annotated[str | None, typer.Option("--from", help="Sender; else demo@ the verified domain.")]
Profile = Annotated[
    sandbox_state.Profile | None,
    typer.Option(
        "--profile",
        help="opensend: OpenSend's tables, no delivery. Unless given: as it was; a new one: standalone.",
    ),
]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the inbox, or for the job.")]
EX_NOT_GOOD = 1
RECIPIENT = "you@example.net"
NOT_DELIVERED = "delivered: nothing; that is the work of OpenSend's ingester, and none runs here"
Sent = sandbox_mail.Sent | sandbox_mail.HandedOver


@contextmanager
def _exits() -> Iterator[None]:
    with exits.exits():
        try:
            yield
        except Lacking as error:
            exits.fail(str(error), error.exit_code)


def _say(text: str) -> None:
    typer.echo(text, err=True)


@app.command()
def up(
    directory: Directory = sandbox.DEFAULT_DIR,
    queue: Queue = None,
    profile: Profile = None,
    fast: Annotated[bool, typer.Option("--fast", hidden=True, help="No fsync: for tests.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start all of it, and return when everything answers.

    A sandbox that was there keeps its data, keys and ports.
    """
    with _exits():
        place = sandbox.absolute(directory)
        _bring_up(place, queue, profile, fast=fast)
        variables = sandbox_state.variables(place, sandbox_state.load(place))
    output.show(variables, as_json=as_json, table=lambda: f"SMTP on 127.0.0.1:{variables['SANDBOX_SMTP_PORT']}")


def _bring_up(place: Path, queue: Queue, profile: Profile, *, fast: bool) -> None:
    fresh = sandbox.up(place, queue=queue, profile=profile, fast=fast, say=_say)
    _say(f"the sandbox in {place} {'is up' if fresh else 'runs already'}")


@app.command()
def down(directory: Directory = sandbox.DEFAULT_DIR, purge: Purge = False) -> None:
    """Stop all of it; the data stays, unless purged."""
    with _exits():
        place = sandbox.absolute(directory)
        sandbox.down(place, purge=purge, say=_say)
    _say(f"the sandbox in {place} is {'gone' if purge else 'down'}")


@app.command()
def status(directory: Directory = sandbox.DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Show each program; exit code 0 when all run and answer."""
    with _exits():
        found = sandbox.status(sandbox.absolute(directory))
    columns = ("program", "pid", "state", "restarts", "answers")
    rows = [(one.name, one.pid, one.state, one.restarts, "yes" if one.answers else "no") for one in found.programs]
    output.show(
        {"good": found.good, "directory": found.directory, "keeper_pid": found.keeper_pid, "programs": found.programs},
        as_json=as_json,
        table=lambda: output.table_of(columns, [("keeper", found.keeper_pid, _keeper(found), None, None), *rows]),
    )
    if not found.good:
        raise typer.Exit(EX_NOT_GOOD)


def _keeper(found: sandbox.Status) -> str:
    return "running" if found.keeper_pid else "stopped"


@app.command()
def env(directory: Directory = sandbox.DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Print names and values for a shell.

    After `eval "$(opensend-milter sandbox env)"` all other commands mean the sandbox.
    """
    with _exits():
        variables = _variables(directory)
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if name != PATH_VARIABLE]
    # The others are for the shell that reads them, these two for our own commands.
    lines.append(f"export SANDBOX_DIR {PATH_VARIABLE}={shlex.quote(variables[PATH_VARIABLE])}")
    output.show(variables, as_json=as_json, table=lambda: "\n".join(lines))


def _variables(directory: Path) -> Mapping[str, str]:
    place = sandbox.absolute(directory)
    return sandbox_state.variables(place, sandbox_state.load(place))


@app.command()
def send(  # noqa: PLR0917  # typer calls it by name
    directory: Directory = sandbox.DEFAULT_DIR,
    to: Recipient = RECIPIENT,
    sender: Sender = None,
    subject: Annotated[str, typer.Option("--subject", help="Subject.")] = "Hello from the sandbox",
    text: Annotated[str, typer.Option("--text", help="Body.")] = "It works.",
    wait_s: Wait = 30.0,
    as_json: AsJson = False,
) -> None:
    """Send one message, and wait until it lies in the inbox.

    By STARTTLS and AUTH. Beside OpenSend it waits for the queue.
    """
    with _exits():
        place = sandbox.absolute(directory)
        with output.progress() as say:
            say("waiting until it has arrived")
            sent = _send(place, wait_s, sender, recipient=to, subject=subject, text=text)
    output.show(sent, as_json=as_json, table=lambda: _sent_text(sent))


def _send(place: Path, wait_s: float, sender: str | None, **more: str) -> Sent:
    """Send one message, and follow it for as far as this sandbox takes it."""
    variables = _variables(place)
    draft = sandbox_mail.Draft(sender=sender or f"demo@{variables['SANDBOX_FROM_DOMAIN']}", **more)
    find_email = composition.find_email
    match sandbox_state.load(place).profile:
        case "standalone":
            return sandbox_mail.send(variables, draft, find_email=find_email, wait_s=wait_s)
        case "opensend":
            find_log = composition.find_log
            return sandbox_mail.hand_over(variables, draft, find_email=find_email, find_log=find_log, wait_s=wait_s)


def _sent_text(sent: Sent) -> str:
    taken = f"accepted:  {sent.reply}\nrecorded:  {sent.record}\n"
    match sent:
        case sandbox_mail.Sent():
            return f"{taken}delivered: {sent.delivered}"
        case sandbox_mail.HandedOver():
            return f"{taken}{_job_text(sent)}\n{_log_text(sent.log)}\n{NOT_DELIVERED}"


def _job_text(sent: sandbox_mail.HandedOver) -> str:
    if sent.job:
        return f"job:       in the queue, for OpenSend's ingester to take:\n{sent.job}"
    if sent.record.endswith(" queued"):
        return "job:       the row itself: it waits to be polled by OpenSend's ingester"
    return "job:       taken already"


def _log_text(line: sandbox_mail.LogLine | None) -> str:
    if line is None:
        return "dashboard: nothing, there is no row in public.logs"
    return f"""\
dashboard: OpenSend's would show this row of public.logs:
created_at {output.plain(line.created_at)}, method {line.method}, endpoint {line.endpoint}, status {line.status}
request_body {json.dumps(line.request_body)}
response_body {json.dumps(line.response_body)}"""


@app.command()
def demo(
    directory: Directory = sandbox.DEFAULT_DIR, queue: Queue = None, profile: Profile = None, as_json: AsJson = False
) -> None:
    """Bring it up, send a first message, and show how to send your own."""
    with _exits():
        place = sandbox.absolute(directory)
        _bring_up(place, queue, profile, fast=False)
        variables = _variables(place)
        sent = _send(place, 30.0, None, recipient=RECIPIENT, subject="Hello from the sandbox", text="It works.")
    examples = {client.value: _example(client, variables) for client in (Client.SWAKS, Client.PYTHON)}
    shown = {"sent": sent, **examples, "undo": _undo(place)}
    output.show({**variables, **shown}, as_json=as_json, table=lambda: _demo_text(variables, sent, place))


def _demo_text(variables: Mapping[str, str], sent: Sent, place: Path) -> str:
    inbox = variables.get("SANDBOX_INBOX")
    where = f"inbox: {inbox}\n" if inbox else ""
    return f"""\
A first message {"went through" if inbox else "is where OpenSend finds it"}:
{_sent_text(sent)}

host: {variables["SANDBOX_SMTP_HOST"]}
ports: {variables["SANDBOX_SMTP_PORT"]} and {variables["SANDBOX_SUBMISSION_PORT"]} (STARTTLS), \
{variables["SANDBOX_SMTPS_PORT"]} (TLS)
user: apikey
password: {variables["SANDBOX_API_KEY"]}
CA: {variables["SANDBOX_TLS_CA"]}
{where}console: {variables["SANDBOX_CONSOLE_URL"]} (name {variables["SANDBOX_CONSOLE_USER"]}, \
password {variables["SANDBOX_CONSOLE_PASSWORD"]}; or that key)

With swaks:

{_example(Client.SWAKS, variables)}
With Python:

{_example(Client.PYTHON, variables)}
Names and values for a script: opensend-milter sandbox env --dir {place}
Undo: {_undo(place)}
"""


def _example(client: Client, variables: Mapping[str, str]) -> str:
    access = Access(
        host=variables["SANDBOX_SMTP_HOST"],
        port=int(variables["SANDBOX_SMTP_PORT"]),
        tls="starttls",
        http_url=variables["SANDBOX_HTTP_URL"],
        key=variables["SANDBOX_API_KEY"],
        sender=f"demo@{variables['SANDBOX_FROM_DOMAIN']}",
        recipient=RECIPIENT,
        ca_file=Path(variables["SANDBOX_TLS_CA"]),
    )
    return SNIPPETS[client].write(access)


def _undo(place: Path) -> str:
    return f"opensend-milter sandbox down --purge --dir {place}"


@app.command(hidden=True)
def keep(directory: Directory = sandbox.DEFAULT_DIR) -> None:
    """Run in the foreground what `up` starts in the background."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _exits():
        sandbox.keep(sandbox.absolute(directory), composition.prepare_sandbox)
