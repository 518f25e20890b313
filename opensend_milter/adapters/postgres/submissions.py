"""SubmissionStore over psycopg: whose key it is, and what became of its messages."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from opensend_milter.adapters.postgres.link import Link, Tables, statements
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import EmailId, KeyId
from opensend_milter.core.submission import Caller, RecipientState, Rejection, Submission

SQL = statements("submissions")


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
        for key, name, permission, restricted, domain, created_at, used_at, settings in self._all("key", key_id=key_id):
            return {
                "id": key,
                "name": name,
                "permission": permission,
                "domain": domain if restricted else None,
                "created_at": created_at,
                "last_used_at": used_at,
                **(settings or {}),
            }
        return None

    def submissions(self, key_id: KeyId, ids: Sequence[EmailId]) -> list[Submission]:
        """Return the key's messages of these ids, latest first; others are not told from those that are not there."""
        found = [_submission(row) for row in self._all("submission", key_id=key_id, ids=list(ids))]
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
        for row in self._all("rejection", key_id=key_id, request_id=request_id):
            found, rule, code, enhanced, text, refused_at, recipients = row
            return Rejection(
                request_id=found,
                rule=rule,
                code=code,
                enhanced=enhanced,
                text=text,
                refused_at=refused_at,
                recipients=tuple(recipients),
            )
        return None

    def check(self) -> None:
        """Return if the database answers."""
        self._all("ready")

    def _all(self, name: str, **values: object) -> list[tuple[Any, ...]]:
        with self._lent() as link, link.lend() as connection:
            return connection.execute(SQL[name], values).fetchall()

    @contextmanager
    def _lent(self) -> Iterator[Link]:
        try:
            link = self._links.get(timeout=self._timeout_s)
        except queue.Empty:
            raise StoreUnavailable("all connections are in use") from None
        try:
            yield link
        finally:
            self._links.put(link)


def _submission(row: tuple[Any, ...]) -> Submission:
    (
        email_id, status, attempts, is_uncertain, created_at, updated_at, scheduled_at, recipients, fared, message_id,
        queue_id, provider_id, reply,
    ) = row  # fmt: skip
    return Submission(
        email_id=EmailId(email_id),
        status=status,
        attempts=attempts,
        is_uncertain=is_uncertain,
        created_at=created_at,
        updated_at=updated_at,
        scheduled_at=scheduled_at,
        recipients=tuple(recipients),
        fared=tuple(RecipientState(email=email, status=how, reason=why) for email, how, why in fared or ()),
        message_id=message_id,
        queue_id=queue_id,
        provider_id=provider_id,
        reply=reply,
    )
