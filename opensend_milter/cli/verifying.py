"""How `domain verify` is begun, and how what became of a domain is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensend_milter import config as configuration
from opensend_milter.adapters.admin.verification import connect_as_owner
from opensend_milter.app.verifying import Verification, Verifier
from opensend_milter.cli.output import exits, plain


@contextmanager
def opened(path: Path | None, nameserver: str) -> Iterator[Verifier]:
    """Connect as the configured URL says; errors of ours end the program with their exit code."""
    with exits():
        config = configuration.load(path)
        with connect_as_owner(config.database, application_name="opensend-milter-domains") as connection:
            yield Verifier(config=config, connection=connection, nameserver=nameserver)


def lines(found: Verification) -> Iterator[str]:
    """Draw one domain for people; what DNS said was written by strangers."""
    yield f"{found.name} of user {found.user_id}: {found.status}" + (f" ({found.note})" if found.note else "")
    for record in found.records:
        yield f"  {record.kind:9} {record.state.value:10} {plain(record.seen)}"
        if record.line:
            yield f"{'':23}add: {record.line}"
