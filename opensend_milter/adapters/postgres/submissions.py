"""SubmissionStore over psycopg: whose key it is, and what became of its messages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.jobs import REFUSALS_FOR
from opensend_milter.adapters.postgres.link import statements
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.standing import fates_of
from opensend_milter.core.model import EmailId, KeyId
from opensend_milter.core.refs import Refused, ref_of, token_hash
from opensend_milter.core.submission import (
    Caller,
    Page,
    Rejection,
    Submission,
    Wanted,
    refusal_of_request,
    request_id,
)

SQL = statements("submissions")
LATEST = "infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff", 0
"""The place before all others in a list."""


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
    queue_id: str | None
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

    id: int
    queue_id: str
    rule: str
    code: int
    enhanced: str
    text: str
    refused_at: datetime
    recipients: list[str]
    ref: str | None


class PostgresSubmissions:
    """For any number of threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def caller(self, secret: str) -> Caller | None:
        """Return the key that this is a secret of."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        ((key_id, networks, may_bulk, has_full_access),) = self._all("caller", token_hash=digest)
        if key_id is None:
            return None
        return Caller(
            key_id=KeyId(key_id),
            networks=None if networks is None else tuple(networks),
            may_bulk=may_bulk,
            has_full_access=has_full_access,
            token_hash=digest,
        )

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
        found = [submission(SubmissionRow._make(row)) for row in rows]
        return sorted(found, key=lambda one: one.email_id, reverse=True)

    def page(self, key_id: KeyId, wanted: Wanted) -> Page | None:
        """Return some of what the key handed in, latest first; None where it has nothing to go on from."""
        at, email_id, refusal_id = LATEST
        if wanted.before:
            places = self._all(
                "place",
                key_id=key_id,
                email_id=wanted.before,
                request_id=request_id(wanted.before),
                refusal_id=refusal_of_request(wanted.before),
            )
            if not places:
                return None
            ((at, email_id, refusal_id),) = places
        rows = self._all(
            "page",
            key_id=key_id,
            at=at,
            email_id=email_id,
            refusal_id=refusal_id,
            statuses=list(wanted.statuses) if wanted.statuses else None,
            tried=wanted.tried,
            rejected=wanted.rejected,
            since=wanted.since or "-infinity",
            bulk_id=wanted.bulk_id,
            limit=wanted.limit + 1,
        )
        listed = rows[: wanted.limit]
        taken = {
            one.email_id: one for one in self.submissions(key_id, [email_id for email_id, other in listed if not other])
        }
        refused = {one.id: one for one in self._rejections(key_id, ids=[other for _, other in listed if other])}
        found = [refused.get(other) if other else taken.get(email_id) for email_id, other in listed]
        return Page(items=tuple(one for one in found if one), has_more=len(rows) > len(listed))

    def rejection(self, key_id: KeyId, email_id: EmailId) -> Rejection | None:
        """Return why a message of this key was not taken."""
        refusal_id = refusal_of_request(email_id)
        ids = [] if refusal_id is None else [refusal_id]
        found = self._rejections(key_id, ids=ids, request_id=request_id(email_id))
        return found[0] if found else None

    def _rejections(self, key_id: KeyId, *, ids: Sequence[int], request_id: str | None = None) -> list[Rejection]:
        rows = self._all("rejections", key_id=key_id, ids=list(ids), request_id=request_id) if ids or request_id else []
        return [
            Rejection(
                id=row.id,
                queue_id=row.queue_id,
                rule=row.rule,
                code=row.code,
                enhanced=row.enhanced,
                text=row.text,
                refused_at=row.refused_at,
                recipients=tuple(row.recipients),
                ref=row.ref,
            )
            for row in map(RejectionRow._make, rows)
        ]

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
        return self._pool.all(SQL[name], **values)


def submission(row: SubmissionRow) -> Submission:
    """Make a submission of a row."""
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
        queue_id=row.queue_id or "",
        provider_id=row.provider_id,
        reply=row.reply,
        never_left=row.never_left,
    )
