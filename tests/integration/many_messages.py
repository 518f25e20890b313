"""Any number of messages of every fate, and refusals, put in by the server alone: for walks and measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from opensend_milter.adapters.postgres.lookup.filling import SearchTable
from opensend_milter.core.rules import Rule
from tests.integration.private_postgres import Database


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a message: the email's status, what is still to be done, and what was heard of it."""

    status: str
    work: str | None = None
    attempts: int = 0
    heard: str | None = None


FATES = {
    "delivered": Fate("delivered", heard="delivered"),
    "sent": Fate("sent", heard="sent"),
    "bounced": Fate("bounced", heard="bounced"),
    "queued": Fate("queued", "waiting"),
    "deferred": Fate("queued", "waiting", 3, "delayed"),
    "scheduled": Fate("scheduled", "waiting", heard="scheduled"),
    "processing": Fate("processing", "attempting"),
    "uncertain": Fate("processing", "uncertain", 1),
    "complained": Fate("complained", heard="complained"),
    "suppressed": Fate("suppressed", heard="suppressed"),
    "failed": Fate("failed", heard="failed"),
    "canceled": Fate("canceled", heard="canceled"),
}
PLAIN = ("Your parcel has left",)
"""What is written where nothing else is asked for."""
# The newest are some minutes old, and all of an hour lie within half of it: what a page counts changes not while it is
# looked at. Most are of the last days.
_MADE = """
    SELECT n, (lpad(to_hex(n), 8, '0') || '-0000-4000-8000-' || substr(md5(n::text), 1, 12))::uuid AS id,
        now() - interval '10 minutes' - mod(n, 30) * interval '1 minute'
            - floor(700 * (n::float / %(count)s) ^ 2) * interval '1 hour' + n * interval '1 microsecond' AS at,
        (%(words)s::text[])[mod(n / cardinality(%(statuses)s::text[]), cardinality(%(words)s::text[])) + 1] AS words,
        mod(n, cardinality(%(statuses)s::text[])) + 1 AS fate
    FROM generate_series(1, %(count)s) n"""
_EMAILS = """
    INSERT INTO emails (id, "from", "to", subject, text, html, headers, status, user_id, created_at, scheduled_at)
    SELECT id, left(words, 200) || ' <app@example.org>',
        jsonb_build_array(left(words, 200) || ' <to' || n || '@example.net>'), words || ' ' || n, '', '', '{}',
        (%(statuses)s::text[])[fate], %(user)s, at,
        CASE (%(statuses)s::text[])[fate] WHEN 'scheduled' THEN at + interval '60 days' END
    FROM made"""
_SUBMISSIONS = """
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
        client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
    SELECT id, at, %(user)s, %(key)s, 'smtp', 'Q' || n, '192.0.2.7', 'TLSv1.3', 'app@example.org', 'app@example.org',
        ARRAY['to' || n || '@example.net', 'other' || n || '@example.net'],
        '<' || left(words, 500) || n || '@example.org>', 2048, ''
    FROM made"""
_JOBS = """
    INSERT INTO opensend_milter.jobs (email_id, user_id, created_at, state, not_before, announce_at, attempts,
        last_error, uncertain_at)
    SELECT id, %(user)s, at, (%(work)s::text[])[fate],
        CASE (%(statuses)s::text[])[fate] WHEN 'scheduled' THEN at + interval '60 days' ELSE at END, NULL,
        (%(attempts)s::integer[])[fate], words, CASE (%(work)s::text[])[fate] WHEN 'uncertain' THEN at END
    FROM made WHERE (%(work)s::text[])[fate] IS NOT NULL"""
_EVENTS = """
    INSERT INTO email_events (email_id, type, payload, received_at, user_id)
    SELECT id, (%(heard)s::text[])[fate], jsonb_build_object('courier', 'smtp', 'attempt', 1,
            CASE WHEN (%(heard)s::text[])[fate] IN ('delayed', 'failed') THEN 'reason' ELSE 'reply' END, words),
        at + interval '1 minute', %(user)s
    FROM made WHERE (%(heard)s::text[])[fate] IS NOT NULL"""
_RESULTS = """
    INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason, courier, noted_at)
    SELECT id, 'other' || n || '@example.net', 'bounced', '550 5.1.1 ' || words, 'smtp', at + interval '1 minute'
    FROM made WHERE (%(statuses)s::text[])[fate] IN ('sent', 'bounced')"""
_REFUSALS = """
    INSERT INTO opensend_milter.refusals (refused_at, rule, code, enhanced, text, front_door, queue_id, client_address,
        key_id, user_id, sender, recipients, message_id, size_bytes)
    SELECT at, (%(rules)s::text[])[rule], (%(codes)s::integer[])[rule], (%(enhanced)s::text[])[rule], words, 'smtp',
        'R' || n, '192.0.2.7', %(key)s, %(user)s, left(words, 200) || '@example.org',
        ARRAY[left(words, 200) || n || '@example.net'], '<' || left(words, 500) || '@example.org>', 2048
    FROM made CROSS JOIN LATERAL (SELECT mod(n, cardinality(%(rules)s::text[])) + 1 AS rule) r"""


def id_of(fate: str, count: int = 1) -> str:
    """Return the id of one message of a fate."""
    number = [*FATES].index(fate) + count * len(FATES)
    end = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:12]
    return f"{number:08x}-0000-4000-8000-{end}"


def put_messages(
    database: Database,
    count: int,
    *,
    key: str,
    user: str,
    words: Sequence[str] = PLAIN,
    fates: Sequence[str] = tuple(FATES),
) -> None:
    """Put in messages of one key, these fates in turn, with these words in whatever a stranger may write."""
    columns = [*map(list, zip(*(astuple(FATES[name]) for name in fates), strict=True))]
    values = {"count": count, "key": key, "user": user, "words": [*words]}
    values |= dict(zip(("statuses", "work", "attempts", "heard"), columns, strict=True))
    _run(database, (_EMAILS, _SUBMISSIONS, _JOBS, _EVENTS, _RESULTS), values)


def put_refusals(database: Database, count: int, *, key: str, user: str, words: Sequence[str] = PLAIN) -> None:
    """Put in refusals by every rule."""
    replies = [(rule.value, rule.replies[0]) for rule in Rule]
    values = {"count": count, "key": key, "user": user, "words": [*words], "statuses": [""]}
    values |= {
        "rules": [name for name, _ in replies],
        "codes": [reply.code for _, reply in replies],
        "enhanced": [reply.enhanced for _, reply in replies],
    }
    _run(database, (_REFUSALS,), values)


def note_for_search(database: Database) -> None:
    """Have the worker's code note all of them."""
    table = SearchTable(database.url_for("opensend_worker"), name="seeding", timeout_s=600)
    while (batch := table.fill()) and batch.is_full:
        pass
    table.close()


def _run(database: Database, statements: Sequence[str], values: dict[str, object]) -> None:
    # In one transaction, so that it is the same instant in all of them.
    with database.connect() as connection, connection.transaction():
        for statement in statements:
            connection.execute(f"WITH made AS ({_MADE}) {statement}".encode(), values)
