"""`feedback`: what comes back of a message by mail."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from opensend_milter import config
from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBox
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.cli.exits import EX_TEMPFAIL, fail
from opensend_milter.cli.output import ConfigPath
from opensend_milter.core import dsn
from opensend_milter.core.errors import OpensendError
from opensend_milter.core.maillog import quoted
from opensend_milter.core.signing import derived

app = typer.Typer(help="What comes back of a message.", no_args_is_help=True)
TIMEOUT_S = 30.0
_PIECE_BYTES = 1_048_576


@app.callback()
def _only_a_group() -> None:
    """Keep `bounce` a command of its own: typer would make the group of one command that command."""


@app.command("bounce")
def bounce(
    recipient: Annotated[str, typer.Option("--recipient", metavar="ADDRESS", help="Whom the bounce came to.")],
    config_path: ConfigPath = None,
) -> None:
    """Read one bounce on standard input.

    As Postfix's pipe(8) hands it over. Exit code 0: taken, or ignored because it is no report or has no return path
    of ours. 75: come again later.
    """
    try:
        said = _take(recipient, config_path)
    except OpensendError as error:
        # Everything is temporary: a code that Postfix takes for a refusal would lose the report.
        fail(quoted(str(error)), EX_TEMPFAIL)
    except Exception as error:  # noqa: BLE001  # the same, and no traceback in a mail log
        fail(f"unexpected {type(error).__name__}", EX_TEMPFAIL)
    sys.stderr.write(f"opensend-milter: {said}\n")


def _take(recipient: str, config_path: ConfigPath) -> str:
    settings = config.load(config_path).database
    raw = _read()
    info = conninfo_for(settings.url, settings.password_dir, "opensend_http")
    box = PostgresFeedbackBox(info, name="opensend-bounce", timeout_s=TIMEOUT_S)
    try:
        email_id = dsn.email_of(derived(box.secret(), "return-path"), recipient)
        if email_id is None:
            return "bounce ignored: not to a return path of ours"
        found = dsn.reports(raw, email_id)
        if not found:
            return f"email={email_id} bounce ignored: no report"
        box.put(found)
        return f"email={email_id} bounce taken: {len(found)} recipients"
    finally:
        box.close()


def _read() -> bytes:
    """Read what matters, and the rest too: Postfix must not find the pipe broken."""
    source = sys.stdin.buffer
    raw = source.read(dsn.MOST_BYTES)
    while source.read(_PIECE_BYTES):
        pass
    return raw
