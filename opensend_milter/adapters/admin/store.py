"""AdminStore: what the administrator's commands ask of the database."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import LiteralString, TypeVar

from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.admin.listing import Listed, listed, unwatched
from opensend_milter.adapters.admin.naming import emails_named, no_email, start_of, the_email, the_one
from opensend_milter.adapters.admin.rows import (
    DomainRow,
    EmailDetail,
    EmailFields,
    EmailRow,
    EmailStatus,
    EventRow,
    JobRow,
    KeyChanges,
    KeyDetail,
    KeyRow,
    NewKey,
    NewSecret,
    Permission,
    Reason,
    RecipientRow,
    RefusalRow,
    ResultRow,
    SecretRow,
    SubmissionRow,
    SuppressionRow,
)
from opensend_milter.adapters.admin.typed import (
    domain_name,
    is_uuid,
    listed_address,
    network,
    printable_name,
    suppressed_address,
)
from opensend_milter.adapters.admin.verification import find_domain
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.address import folded, listings
from opensend_milter.core.errors import UsageError
from opensend_milter.core.fates import Result, Work, fates
from opensend_milter.core.model import EmailId, KeyId, UserId
from opensend_milter.core.refs import read_ref
from opensend_milter.core.rules import Rule

Row = TypeVar("Row")

REFUSALS_SHOWN = 20


class AdminStore:
    """The administrator's view, over one connection that it does not close.

    Raises UsageError where something cannot be done as asked, StoreUnavailable where the database is the trouble.
    """

    def __init__(self, connection: Connection, *, makes_users: bool) -> None:
        """`makes_users`: not in the opensend profile, whose users are OpenSend's own."""
        self._connection = connection
        self._makes_users = makes_users

    def ensure_user(self, name: str) -> UserId:
        """Return the user of this id, made on first use where that is ours to do."""
        user_id = printable_name(name, "user")
        if self._makes_users and not self._user_exists(user_id):
            self._execute("add_user", id=user_id)
        if not self._user_exists(user_id):
            known = ", ".join(str(found) for (found,) in self._values("some_users"))
            raise UsageError(f"no user {user_id!r} in this database (--user); known are: {known or 'none'}")
        return UserId(user_id)

    def _user_exists(self, user_id: str) -> bool:
        return bool(self._values("user_exists", id=user_id)[0][0])

    def create_key(self, *, name: str, user_id: UserId, permission: Permission, domain: str | None) -> NewKey:
        """Make an API key; its token is in the answer and nowhere else."""
        if domain is not None and permission == "full_access":
            # OpenSend's REST API does not look at the domain of such a key.
            raise UsageError("full_access is not bound to a domain: a key for one domain needs sending_access")
        label = printable_name(name, "name of a key")
        bound = self.find_domain(domain, user_id) if domain is not None else None
        token, token_hash, preview = _new_token()
        ((key_id,),) = self._values(
            "add_key",
            name=label,
            token_hash=token_hash,
            preview=preview,
            permission=permission,
            domain=bound.id if bound else None,
            user_id=user_id,
        )
        return NewKey(
            id=KeyId(str(key_id)),
            token=token,
            preview=preview,
            name=label,
            user_id=user_id,
            permission=permission,
            domain=bound.name if bound else None,
        )

    def list_keys(self, user_id: str | None = None) -> list[KeyRow]:
        """List keys of one user or of all, oldest first."""
        return self._rows("list_keys", KeyRow, user_id=user_id, named="")

    def find_key(self, named: str) -> KeyRow:
        """Return the one key whose id begins or ends like this."""
        start = start_of(named, "key")
        return the_one(start, self._rows("list_keys", KeyRow, user_id=None, named=start), "key", "key list")

    def show_key(self, named: str) -> KeyDetail:
        """Return all that is known of the one key whose id begins or ends like this."""
        key = self.find_key(named)
        return KeyDetail(
            key=key,
            sent_today=None if key.per_day is None else self.sent_today(key.id),
            secrets=self.list_secrets(key.id),
        )

    def sent_today(self, key_id: KeyId) -> int:
        """Return how many messages of its daily limit a key has used."""
        sent = self._values("sent_today", id=key_id)
        return int(str(sent[0][0])) if sent else 0

    def set_key(self, key: KeyRow, changes: KeyChanges) -> KeyRow:
        """Change what a key may do; it holds from the next message on."""
        values = {name: getattr(changes, name) for name in KeyChanges.__slots__}
        for name, normal in (
            ("allowed_senders", listed_address),
            ("allowed_recipients", listed_address),
            ("networks", network),
        ):
            values[name] = _normal(values[name], normal)
        if isinstance(changes.expires_at, datetime):
            values["expires_at"] = changes.expires_at.isoformat()
        self._execute("set_key", id=key.id, **values)
        return self.find_key(key.id)

    def revoke_key(self, key_id: KeyId) -> None:
        """Delete the key: as in OpenSend, it is good as long as its row is there."""
        if not self._execute("delete_key", id=key_id):
            raise UsageError(f"key {key_id} is already gone")

    def rotate_key(self, key: KeyRow, keep: timedelta) -> NewSecret:
        """Give a key a new secret; those before stay good for as long as `keep`."""
        token, token_hash, preview = _new_token()
        if not self._execute("rotate_key", id=key.id, keep=keep, token_hash=token_hash, preview=preview):
            raise UsageError(f"key {key.id} is already gone")
        return NewSecret(id=key.id, token=token, preview=preview, older=self.list_secrets(key.id))

    def list_secrets(self, key_id: KeyId) -> list[SecretRow]:
        """List which earlier secrets of a key are still good, latest first."""
        return self._rows("list_secrets", SecretRow, id=key_id)

    def revoke_secret(self, key_id: KeyId, prefix: str) -> SecretRow:
        """End the one earlier secret whose hash begins like this."""
        wanted = prefix.strip().lower()
        found = [secret for secret in self.list_secrets(key_id) if wanted and secret.hash.startswith(wanted)]
        if len(found) != 1:
            raise UsageError(f"{len(found)} earlier secrets of key {key_id} have a hash that begins with {wanted!r}")
        self._execute("delete_secret", id=key_id, hash=found[0].hash)
        return found[0]

    def add_domain(self, user_id: UserId, name: str, *, verified: bool) -> DomainRow:
        """Add a domain to a user."""
        domain = domain_name(name)
        if self._rows("list_domains", DomainRow, user_id=user_id, name=domain):
            raise UsageError(f"user {user_id!r} already has the domain {domain}: see `domain list`")
        status = "verified" if verified else "not_started"
        ((domain_id,),) = self._values("add_domain", name=domain, status=status, user_id=user_id)
        return self.find_domain(str(domain_id), user_id)

    def list_domains(self, user_id: str | None = None) -> list[DomainRow]:
        """List domains of one user or of all, verified ones first."""
        return self._rows("list_domains", DomainRow, user_id=user_id, name=None)

    def find_domain(self, name: str, user_id: str | None = None) -> DomainRow:
        """Return the one domain of this name or id."""
        found = find_domain(self._connection, name, user_id)
        return self._rows("list_domains", DomainRow, user_id=None, name=found.id)[0]

    def verify_domain(self, domain: DomainRow) -> DomainRow:
        """Let its user send from this domain."""
        self._execute("verify_domain", id=domain.id)
        return dataclasses.replace(domain, status="verified")

    def remove_domain(self, domain: DomainRow, *, force: bool) -> None:
        """Remove a domain; keys bound to it can send nothing afterwards, so that is refused unless forced."""
        if domain.keys and not force:
            raise UsageError(
                f"{domain.keys} key(s) are bound to {domain.name} and could send nothing without it: "
                "revoke them first (`key list`), or use --force"
            )
        self._execute("delete_domain", id=domain.id)

    def add_suppression(self, user_id: UserId, email: str, reason: Reason) -> SuppressionRow:
        """Suppress an address for a user, or say anew why it is suppressed."""
        address = suppressed_address(email)
        values = {"user_id": user_id, "email": address, "folded": folded(address), "reason": reason}
        return self._rows("put_suppression", SuppressionRow, **values)[0]

    def remove_suppression(self, user_id: str, email: str) -> list[SuppressionRow]:
        """Let a user's mail reach an address again; return what is gone, in all its spellings."""
        address = suppressed_address(email)
        rows = self._rows("delete_suppression", SuppressionRow, user_id=user_id, spellings=list(listings(address)))
        if not rows:
            raise UsageError(f"{address} is not suppressed for user {user_id!r}: see `suppression list`")
        return sorted(rows, key=lambda row: (row.email != address, row.email))

    def bounced_inline(self, user_id: str | None, since: datetime) -> list[SuppressionRow]:
        """List whom a next hop's refusal has suppressed since, oldest first."""
        return self._rows("bounced_inline", SuppressionRow, user_id=user_id, since=since)

    def remove_bounced_inline(self, rows: Sequence[SuppressionRow]) -> int:
        """Let mail reach these again; return how many were still listed for that."""
        users, emails = [row.user_id for row in rows], [row.email for row in rows]
        return self._execute("delete_bounced_inline", user_ids=users, emails=emails)

    def list_suppressions(
        self, user_id: str | None = None, *, limit: int | None, progress: Callable[[int], None] = unwatched
    ) -> Listed[SuppressionRow]:
        """List suppressed addresses of one user or of all, newest first."""
        return self._listed("list_suppressions", SuppressionRow, limit, progress, user_id=user_id)

    def list_emails(
        self,
        *,
        status: EmailStatus | None = None,
        user_id: str | None = None,
        since: datetime | None = None,
        limit: int | None,
        progress: Callable[[int], None] = unwatched,
    ) -> Listed[EmailRow]:
        """List emails, newest first."""
        return self._listed("list_emails", EmailRow, limit, progress, status=status, user_id=user_id, since=since)

    def find_email(self, queue_id: str) -> tuple[EmailId, str] | None:
        """Return id and status of the latest email of a Postfix queue id."""
        if not queue_id:
            return None
        for email_id, status in self._values("find_email", queue_id=queue_id):
            return EmailId(str(email_id)), str(status)
        return None

    def show_email(self, email_or_queue_id: str) -> EmailDetail:
        """Return everything known of an email's id, an end of one, a Postfix queue id, or a refusal's ref."""
        wanted = email_or_queue_id.strip()
        email_id = wanted if is_uuid(wanted) else the_email(wanted, emails_named(self._connection, [wanted])[wanted])
        emails = self._rows("show_email", EmailFields, id=email_id) if email_id else []
        submissions = self._rows("show_submission", SubmissionRow, id=email_id) if email_id else []
        queue_id = submissions[0].queue_id if submissions else wanted
        ref = read_ref(wanted)
        refusals = self.list_refusals(queue_id=queue_id, ref=ref, limit=REFUSALS_SHOWN).rows if queue_id else []
        if not emails and not submissions and not refusals:
            raise no_email([wanted])
        jobs = self._rows("show_job", JobRow, id=email_id) if email_id else []
        results = self._rows("show_results", ResultRow, id=email_id) if email_id else []
        known = emails and submissions
        return EmailDetail(
            email=emails[0] if emails else None,
            submission=submissions[0] if submissions else None,
            job=jobs[0] if jobs else None,
            recipients=list(_recipients(emails[0], submissions[0], jobs, results)) if known else [],
            events=self._rows("show_events", EventRow, id=email_id) if email_id else [],
            refusals=refusals,
        )

    def list_refusals(
        self,
        *,
        queue_id: str | None = None,
        ref: str | None = None,
        rule: Rule | None = None,
        user_id: str | None = None,
        since: datetime | None = None,
        limit: int | None,
        progress: Callable[[int], None] = unwatched,
    ) -> Listed[RefusalRow]:
        """List messages that were not taken, newest first; with `queue_id` those of that or of this `ref`."""
        return self._listed(
            "list_refusals",
            RefusalRow,
            limit,
            progress,
            queue_id=queue_id,
            ref=ref,
            rule=rule.value if rule else None,
            user_id=user_id,
            since=since,
        )

    def _listed(
        self, name: str, row: type[Row], limit: int | None, progress: Callable[[int], None], /, **values: object
    ) -> Listed[Row]:
        return listed(self._connection, _statement(name), row, limit, values, progress=progress)

    def _rows(self, name: str, row: type[Row], /, **values: object) -> list[Row]:
        with explained(), self._connection.cursor(row_factory=class_row(row)) as cursor:
            return cursor.execute(_statement(name), values).fetchall()

    def _values(self, name: str, /, **values: object) -> list[tuple[object, ...]]:
        with explained():
            return self._connection.execute(_statement(name), values).fetchall()

    def _execute(self, name: str, /, **values: object) -> int:
        with explained():
            return self._connection.execute(_statement(name), values).rowcount


def _normal(texts: list[str] | None, normal: Callable[[str], str]) -> list[str] | None:
    return None if texts is None else list(dict.fromkeys(map(normal, texts)))


def _new_token() -> tuple[str, str, str]:
    """Make a secret; return it, its hash and what lists show of it."""
    token = f"os_{secrets.token_hex(16)}"
    return token, hashlib.sha256(token.encode()).hexdigest(), f"{token[:6]}...{token[-4:]}"


def _statement(name: str) -> LiteralString:
    return statements("admin")[name]


def _recipients(
    email: EmailFields, submission: SubmissionRow, jobs: list[JobRow], results: list[ResultRow]
) -> Iterator[RecipientRow]:
    """Say where each recipient stands, those who were left out too."""
    noted = {result.address: result for result in results}
    work = [Work(state=job.state, attempts=job.attempts, left=job.recipients, reason=job.last_error) for job in jobs]
    for fate in fates(
        status=email.status,
        recipients=submission.recipients,
        results={result.address: Result(outcome=result.outcome, reason=result.reason) for result in results},
        left_out={one["email"]: one["reason"] for one in submission.dropped or ()},
        work=next(iter(work), None),
    ):
        result = noted.get(fate.email)
        yield RecipientRow(
            address=fate.email,
            status=fate.status,
            reason=fate.reason,
            courier=result.courier if result else None,
            noted_at=result.noted_at if result else None,
        )
