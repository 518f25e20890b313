"""ConsoleActions: what somebody does from the console, by the code of the commands, and put down together with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from opensend_milter.adapters.admin.deliveries import DeliveryAdmin
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.link import Connection, connect, statements, store_errors
from opensend_milter.core.actions import Action, Outcome
from opensend_milter.core.errors import StoreUnavailable, UsageError
from opensend_milter.core.model import EmailId, UserId
from opensend_milter.core.visitors import Visitor

SQL = statements("console_actions")
DONE = "done"


class ConsoleActions:
    """Over a connection for each: few are done, and each by a person. Raises StoreUnavailable."""

    def __init__(self, info: str) -> None:
        self._info = info

    def foretell(self, action: Action) -> Outcome:
        """Say what would come of it: it is done, and taken back before anybody sees it."""
        with self._connected() as connection, connection.transaction(force_rollback=True):
            return _do(connection, action)

    def take(self, action: Action, *, form: str, visitor: Visitor, client_address: str) -> Outcome | None:
        """Do it, and put down who did and what came of it; None: nothing, for this form was sent before."""
        noted = 0
        with self._connected() as connection, connection.transaction() as both:
            outcome = _do(connection, action)
            noted = connection.execute(
                SQL["note"],
                {
                    "actor": visitor.name,
                    "client_address": client_address,
                    "action": action.act,
                    "email_id": action.email_id,
                    "address": action.address or None,
                    "outcome": outcome.why_not or DONE,
                    "form": form,
                },
            ).rowcount
            if not noted:
                raise psycopg.Rollback(both)
        return outcome if noted else None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with store_errors(), connect(self._info, application_name="opensend-console-actor") as connection:
            yield connection


def _do(connection: Connection, action: Action) -> Outcome:
    """Do it, in a transaction of the caller's; what is refused leaves nothing behind."""
    try:
        with connection.transaction():
            return _suppress(connection, action) if action.act == "suppress" else _deliver(connection, action)
    except UsageError as error:
        if isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise StoreUnavailable(f"{error.__cause__.diag.message_primary}: run `db init` or `db migrate`") from error
        return Outcome(why_not=str(error))


def _deliver(connection: Connection, action: Action) -> Outcome:
    deliveries, email_id = DeliveryAdmin(connection), EmailId(action.email_id)
    if action.act == "retry":
        found = deliveries.retry([email_id])
    else:
        found = deliveries.end([email_id], "canceled", "canceled from the console")
    why_not = "" if email_id in found.done else found.not_done.get(email_id, "it is not there any more")
    return Outcome(was=found.done.get(email_id), why_not=why_not)


def _suppress(connection: Connection, action: Action) -> Outcome:
    owners = connection.execute(SQL["owner"], {"email_id": action.email_id}).fetchall()
    if not owners:
        return Outcome(why_not="it is not there any more")
    row = AdminStore(connection, makes_users=False).add_suppression(UserId(owners[0][0]), action.address, "manual")
    return Outcome(was="suppressed" if row.updated_at > row.suppressed_at else "reachable")
