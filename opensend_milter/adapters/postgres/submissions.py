"""SubmissionStore over psycopg: whose key it is, and what became of its messages."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.jobs import REFUSALS_FOR
from opensend_milter.adapters.postgres.link import Connection, Link, Tables, statements
from opensend_milter.adapters.postgres.standing import fates_of
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import EmailId, KeyId
from opensend_milter.core.refs import Refused, ref_of, token_hash
from opensend_milter.core.submission import Caller, Rejection, Submission

SQL = statements("submissions")


class KeyRow(NamedTuple):
    """What a key may see of itself."""

    id: str
    name: str
    permission: str
    restricted: bool
    domain: str | None
    created_at: datetime
    last_used_at: datetime | None
    settings: dict[str, object] | None


class SubmissionRow(NamedTuple):
    """One message of a key."""

    email_id: EmailId
    status: str
    attempts: int
    created_at: datetime
    updated_at: datetime
    scheduled_at: datetime | None
    recipients: list[str]
    fared: list[tuple[str, str, str]] | None
    """Address, outcome, reason."""
    dropped: list[dict[str, str]] | None
    message_id: str | None
    queue_id: str
    provider_id: str | None
    reply: str
    work_state: str | None
    """None: the delivery is finished, or not ours."""
    work_attempts: int | None
    work_left: list[str] | None
    work_reason: str | None
    never_left: bool


class RejectionRow(NamedTuple):
    """A message of a key that was not taken."""

    request_id: str
    rule: str
    code: int
    enhanced: str
    text: str
    refused_at: datetime
    recipients: list[str]
    ref: str | None


class PostgresSubmissions:
    """For any number of threads, which share a few connections."""

    def __init__(self, info: str, *, connections: int, timeout_s: float, tables: Tables | None = None) -> None:
        self._timeout_s = timeout_s
        self._links: queue.LifoQueue[Link] = queue.LifoQueue()
        for number in range(connections):
            self._links.put(Link(info, name=f"opensend-http-{number}", timeout_s=timeout_s, tables=tables))

    def close(self) -> None:
        """Let go of all connections."""
        while not self._links.empty():
            self._links.get_nowait().close()

    def caller(self, secret: str) -> Caller | None:
        """Return the key that this is a secret of."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        ((key_id, networks, may_bulk),) = self._all("caller", token_hash=digest)
        if key_id is None:
            return None
        return Caller(key_id=KeyId(key_id), networks=None if networks is None else tuple(networks), may_bulk=may_bulk)

    def about(self, key_id: KeyId) -> dict[str, object] | None:
        """Return what a key may see of itself."""
        for row in map(KeyRow._make, self._all("key", key_id=key_id)):
            return {
                "id": row.id,
                "name": row.name,
                "permission": row.permission,
                "domain": row.domain if row.restricted else None,
                "created_at": row.created_at,
                "last_used_at": row.last_used_at,
                **(row.settings or {}),
            }
        return None

    def submissions(self, key_id: KeyId, ids: Sequence[EmailId]) -> list[Submission]:
        """Return the key's messages of these ids, latest first; others are not told from those that are not there."""
        rows = self._all("submission", key_id=key_id, ids=list(ids))
        found = [_submission(SubmissionRow._make(row)) for row in rows]
        return sorted(found, key=lambda one: one.email_id, reverse=True)

    def page(
        self,
        key_id: KeyId,
        *,
        statuses: Sequence[str] | None,
        since: datetime | None,
        bulk_id: str | None,
        before: EmailId | None,
        limit: int,
    ) -> list[Submission]:
        """Return some of the key's messages, latest first."""
        rows = self._all(
            "page",
            key_id=key_id,
            statuses=list(statuses) if statuses else None,
            since=since,
            bulk_id=bulk_id,
            before=before,
            limit=limit,
        )
        return self.submissions(key_id, [EmailId(email_id) for (email_id,) in rows])

    def rejection(self, key_id: KeyId, request_id: str) -> Rejection | None:
        """Return why a request of this key was not taken."""
        for row in map(RejectionRow._make, self._all("rejection", key_id=key_id, request_id=request_id)):
            return Rejection(
                request_id=row.request_id,
                rule=row.rule,
                code=row.code,
                enhanced=row.enhanced,
                text=row.text,
                refused_at=row.refused_at,
                recipients=tuple(row.recipients),
                ref=row.ref,
            )
        return None

    def refused(self, token: str) -> Refused | None:
        """Return what a stranger may see who has the address of a refusal; None too where its time is over."""
        values = {"ref": ref_of(token), "token_hash": token_hash(token), "age": REFUSALS_FOR}
        for rule, code, enhanced, from_domain in self._all("refused", **values):
            return Refused(rule=rule, code=code, enhanced=enhanced, from_domain=from_domain)
        return None

    def check(self) -> None:
        """Return if the database answers."""
        self._all("ready")

    def _all(self, name: str, **values: object) -> list[tuple[Any, ...]]:
        with self.lend() as connection:
            return connection.execute(SQL[name], values).fetchall()

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection to who asks something else of the same tables."""
        try:
            link = self._links.get(timeout=self._timeout_s)
        except queue.Empty:
            raise StoreUnavailable("all connections are in use") from None
        try:
            with link.lend() as connection:
                yield connection
        finally:
            self._links.put(link)


def _submission(row: SubmissionRow) -> Submission:
    return Submission(
        email_id=row.email_id,
        status=row.status,
        attempts=row.attempts,
        is_uncertain=row.work_state == "uncertain",
        created_at=row.created_at,
        updated_at=row.updated_at,
        scheduled_at=row.scheduled_at,
        fates=fates_of(row),
        message_id=row.message_id,
        queue_id=row.queue_id,
        provider_id=row.provider_id,
        reply=row.reply,
        never_left=row.never_left,
    )
