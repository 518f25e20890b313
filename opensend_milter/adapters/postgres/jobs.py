"""JobStore over psycopg: the outbox, the claims and what came of each attempt."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any, LiteralString

from opensend_milter.adapters.postgres.answers import NOBODY, answered, clean, listed, results, text, told
from opensend_milter.adapters.postgres.job_rows import Parameters, RouteRow, SubmissionRow, TakenRow, UncertainRow
from opensend_milter.adapters.postgres.link import Connection, Link, Tables, statements
from opensend_milter.adapters.postgres.whole_rows import make_all_whole, make_whole
from opensend_milter.core.address import domain_of, normal_domain, unicode_domain
from opensend_milter.core.ids import SENT_ONCE
from opensend_milter.core.model import (
    Address,
    Announcement,
    Answers,
    EmailId,
    Job,
    Lane,
    Route,
    Sent,
    UserId,
)
from opensend_milter.core.next_hop import LANE_FOR, LANE_RECIPIENTS, is_unknown

log = logging.getLogger(__name__)
SQL = statements("jobs")
TAKE_DUE_WAITING = SQL["take_due"].replace(" SKIP LOCKED", "")
REFUSALS_FOR = timedelta(days=30)
REFUSALS_KEPT = 100_000
VISITS_FOR = timedelta(days=365)
"""Who asks who has read a message, or taken one back, does so late."""
PRUNED_AT_ONCE = 1_000
PRUNE_ROUNDS = 50
FINISHED = frozenset({
    "sent", "delivered", "bounced", "complained", "suppressed", "failed", "canceled", "cancelled",
})  # fmt: skip
LOST_WORKER = "the worker was lost while it was sending"
NOBODY_KNOWS = "nobody could tell whether it was sent, for as long as we wait for that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How long what is kept for a time only."""

    duplicate_window: timedelta = timedelta(hours=1)
    raw: timedelta | None = None
    """Of messages that are finished; None: for ever."""
    uncertain: timedelta | None = None
    """Then the message is failed; None: never."""


class PostgresJobStore:
    """One connection for one thread, opened when first needed and again after it was lost."""

    def __init__(
        self,
        info: str,
        *,
        worker: str,
        lease_s: float,
        timeout_s: float,
        hand_over: bool,
        keeping: Keeping,
        tables: Tables | None = None,
    ) -> None:
        """With `hand_over` an announced job is OpenSend's business: its row goes. Else it is announced again."""
        self._keeping = keeping
        self._worker = worker
        self._lease = timedelta(seconds=lease_s)
        self._hand_over = hand_over
        self._link = Link(info, name=worker, timeout_s=timeout_s, tables=tables)

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def due_announcements(self, limit: int) -> list[Announcement]:
        """Take emails whose job is to be announced; they come again after a minute if nobody says more."""
        rows = self._all("due_announcements", {"limit": limit, "hand_over": self._hand_over})
        if self._hand_over:
            lacking = make_whole(self._link, [EmailId(row[0]) for row in rows])
            rows = [row for row in rows if row[0] not in lacking]
        due = [
            Announcement(email_id=EmailId(email_id), requested_at=requested_at, attempts=attempts)
            for email_id, requested_at, attempts in rows
        ]
        return sorted(due, key=attrgetter("requested_at"))

    def announced(self, email_ids: Sequence[EmailId]) -> None:
        """Note that the queue has these."""
        with self._link.lend() as connection:
            connection.execute(SQL["handed_over" if self._hand_over else "announced"], {"ids": list(email_ids)})

    def announce_again(self, email_ids: Sequence[EmailId], after_s: float) -> None:
        """Note that the queue does not have these."""
        with self._link.lend() as connection:
            connection.execute(SQL["announce_again"], {"ids": list(email_ids), "after": timedelta(seconds=after_s)})

    def end_moved_on(self) -> int:
        """End jobs whose email was taken up without us; return how many."""
        if not self._hand_over:
            return 0
        with self._link.lend() as connection:
            return connection.execute(SQL["end_moved_on"], {"limit": PRUNED_AT_ONCE}).rowcount

    def due_lanes(self) -> list[Lane]:
        """List whose jobs are due, each lane once."""
        return [Lane(UserId(user_id), courier) for user_id, courier in self._all("due_lanes", {})]

    def claim(self, email_id: EmailId) -> Job | None:
        """Claim one email, or None where it is not to be sent now."""
        with self._link.lend() as connection, connection.transaction():
            taken = self._take(connection, SQL["take"], {"id": email_id})
            return self._load(connection, taken) if taken and self._mark(connection, taken) else None

    def claim_due(self, lane: Lane, *, waits: bool = False) -> Job | None:
        """Claim the email that has waited longest in this lane; jobs not to be sent are put away on the way.

        What somebody else has a lock on is passed over; with `waits` it is waited for, since he may let go of it.
        """
        statement = TAKE_DUE_WAITING if waits else SQL["take_due"]
        where = {"user_id": lane.user_id, "courier": lane.courier or ""}
        while True:
            with self._link.lend() as connection, connection.transaction():
                taken = self._take(connection, statement, where)
                if taken is None:
                    return None
                job = self._load(connection, taken) if self._mark(connection, taken) else None
            if job:
                return job

    def _take(self, connection: Connection, statement: LiteralString, parameters: Parameters) -> TakenRow | None:
        lease = {"lease": self._lease, "worker": self._worker}
        row = connection.execute(statement, {**parameters, **lease}).fetchone()
        return TakenRow._make(row) if row else None

    def _mark(self, connection: Connection, taken: TakenRow) -> bool:
        """Mark the email as in hand; where that cannot be, put its job away and return False."""
        if connection.execute(SQL["mark_processing"], taken.key).fetchone():
            return True
        row = connection.execute(SQL["email_status"], taken.key).fetchone()
        status, scheduled_at = row or (None, None)
        if status is None or status in FINISHED:
            connection.execute(SQL["forget"], taken.key)
        elif status == "processing":
            # Not through us: whoever took it may have sent it.
            connection.execute(SQL["begin"], {**taken.key, "attempt": taken.attempts, "lease": self._lease})
            connection.execute(SQL["record_uncertain"], {**taken.key, "reason": "somebody else has it in hand"})
            log.error('email=%s status=uncertain reason="somebody else has it in hand"', taken.email_id)
        else:
            connection.execute(SQL["postpone"], {**taken.key, "until": scheduled_at if status == "scheduled" else None})
        return False

    def _load(self, connection: Connection, taken: TakenRow) -> Job | None:
        found = connection.execute(SQL["submission"], taken.key).fetchone()
        row = SubmissionRow._make(found) if found else None
        raw = b"".join(piece for (piece,) in connection.execute(SQL["raw"], taken.key))
        if row is None or row.size_bytes != len(raw):
            reason = "the stored message is not whole"
            log.error('email=%s status=failed reason="%s"', taken.email_id, reason)
            user_id = row.user_id if row else None
            connection.execute(SQL["record_failed"], _failure(taken.key, _turn(taken), user_id, reason))
            return None
        return Job(
            email_id=taken.email_id,
            user_id=row.user_id,
            lease_id=taken.lease_id,
            attempts=taken.attempts,
            rounds=taken.rounds,
            from_address=row.from_address,
            recipients=tuple(row.recipients),
            raw=raw,
            received_at=row.received_at,
            queue_id=row.queue_id,
            client_address=row.client_address,
            front_door=row.front_door,
            tls=row.tls,
            route=_route(connection, row),
            some_have_it=row.some_have_it,
            refused=tuple((Address(address), reason) for address, reason in row.refused or ()),
        )

    def extend(self, jobs: Sequence[Job]) -> None:
        """Put off the end of the leases of these."""
        keys = {"ids": [job.email_id for job in jobs], "lease_ids": [job.lease_id for job in jobs]}
        with self._link.lend() as connection:
            connection.execute(SQL["extend"], {**keys, "lease": self._lease})

    def begin(self, job: Job) -> bool:
        """Commit that the attempt begins; False where the claim is no longer ours."""
        return bool(self._all("begin", {**_key(job), "attempt": job.attempts + 1, "lease": self._lease}))

    def give_back(self, job: Job) -> None:
        """Undo a claim for which not one byte went out."""
        with self._link.lend() as connection:
            connection.execute(SQL["give_back"], {**_key(job), "attempt": job.attempts + 1})

    def record_sent(self, job: Job, sent: Sent) -> None:
        """Close the job; what the next hop did not take is in the event."""
        event = _event("sent", SENT_ONCE.format(job.email_id), job.user_id, told(sent))
        fared = results(sent.refused)
        status = "bounced" if "bounced" in fared["outcomes"] else "sent"
        self._record("record_sent", _key(job) | event | fared | _answered(job, sent) | {"status": status})

    def record_partly(self, job: Job, sent: Sent, wait_s: float) -> None:
        """Note who has it, and let those wait who are to be tried again."""
        payload = {**told(sent), "attempt": job.attempts + 1}
        event = _event("delayed", f"provider-delayed:{job.email_id}:{_turn(job)}", job.user_id, payload)
        left = {"left": [address for address, _ in sent.deferred], "reason": text(sent.deferred[0][1])}
        fared = results(sent.refused, sent.deferred)
        wait = {"wait": timedelta(seconds=wait_s)}
        self._record("record_partly", _key(job) | event | fared | _answered(job, sent) | left | wait)

    def record_deferred(self, job: Job, reason: str, wait_s: float) -> None:
        """Let it wait."""
        payload: dict[str, object] = {"reason": reason, "attempt": job.attempts + 1}
        if job.some_have_it:
            payload["recipients"] = [{"email": address} for address in job.recipients]
        event = _event("delayed", f"provider-delayed:{job.email_id}:{_turn(job)}", job.user_id, payload)
        later = {"wait": timedelta(seconds=wait_s), "reason": text(reason)}
        self._record("record_deferred", _key(job) | event | later)

    def record_failed(self, job: Job, reason: str, answers: Answers | None = None) -> None:
        """Close the job: nobody got it. Where the next hop knows none of them, that is a bounce and no failure."""
        values = _failure(_key(job), _turn(job), job.user_id, reason)
        if answers:
            values |= _fared(job, reason, answers)
        self._record("record_failed", values)

    def record_uncertain(self, job: Job, reason: str) -> None:
        """Keep the job where nobody takes it."""
        if not self._all("record_uncertain", {**_key(job), "reason": text(reason)}):
            log.error("%s: email=%s is no longer ours: uncertain outcome not recorded", job.queue_id, job.email_id)

    def release_expired(self) -> int:
        """Give back claims whose worker died; mark begun ones uncertain; fail those uncertain for too long."""
        given_back = self._all("release_claimed", {})
        for (email_id,) in given_back:
            log.warning("email=%s given back: its worker was lost before it sent anything", email_id)
        uncertain = self._all("release_attempting", {"reason": LOST_WORKER})
        for email_id, queue_id in uncertain:
            log.error('%s: email=%s status=uncertain reason="%s"', queue_id, email_id, LOST_WORKER)
        return len(given_back) + len(uncertain) + self._fail_long_uncertain()

    def make_whole(self) -> int:
        """Let all that waits be fit for OpenSend's worker, which may take it up unasked; return how many were not."""
        return make_all_whole(self._link) if self._hand_over else 0

    def set_right(self) -> int:
        """Let be due what waits by a database's clock that was ahead and is not any more. Return how many."""
        done = 0
        # It may be all there is, and each batch has to end within the patience of a connection.
        while some := self._set_some_right():
            done += some
        return done

    def _set_some_right(self) -> int:
        with self._link.lend() as connection:
            return connection.execute(SQL["set_right"], {"lease": self._lease, "limit": PRUNED_AT_ONCE}).rowcount

    def _fail_long_uncertain(self) -> int:
        if self._keeping.uncertain is None:
            return 0
        found = [UncertainRow._make(row) for row in self._all("long_uncertain", {"age": self._keeping.uncertain})]
        for row in found:
            self._record("record_failed", _failure(row.key, _turn(row), row.user_id, NOBODY_KNOWS))
            log.error('%s: email=%s status=failed reason="%s"', row.queue_id, row.email_id, NOBODY_KNOWS)
        return len(found)

    def prune(self, progress: Callable[[str, int], None] = lambda _what, _count: None) -> int:
        """Delete what is kept for a time only, batch by batch. Return how much."""
        keeping, deleted = self._keeping, 0
        for what, name, parameters in (
            ("refusals", "prune_old_refusals", {"age": REFUSALS_FOR}),
            ("refusals", "prune_surplus_refusals", {"keep": REFUSALS_KEPT}),
            ("names of messages", "prune_fingerprints", {"age": keeping.duplicate_window}),
            ("compared rows", "prune_row_digests", {}),
            ("daily counts", "prune_key_usage", {}),
            ("old secrets", "prune_key_secrets", {}),
            ("rate limits", "prune_rate_buckets", {}),
            ("views of messages", "prune_console_views", {"age": VISITS_FOR}),
            ("actions of the console", "prune_console_actions", {"age": VISITS_FOR}),
            ("answers of next hops", "prune_lane_answers", {"keep": LANE_RECIPIENTS, "age": LANE_FOR}),
            ("messages", "drop_raw", {"age": keeping.raw} if keeping.raw else None),
            ("jobs", "prune_jobs", {} if self._hand_over else None),
        ):
            if parameters is not None:
                deleted += self._prune(name, parameters, partial(progress, what))
        return deleted

    def _prune(self, name: str, parameters: Parameters, progress: Callable[[int], None]) -> int:
        """Delete in small transactions, so that nobody waits long for a lock."""
        deleted = 0
        for _ in range(PRUNE_ROUNDS):
            with self._link.lend() as connection:
                batch = connection.execute(SQL[name], {**parameters, "limit": PRUNED_AT_ONCE}).rowcount
            deleted += batch
            if batch:
                progress(batch)
            if batch < PRUNED_AT_ONCE:
                break
        return deleted

    def _record(self, name: str, parameters: Parameters) -> None:
        with self._link.lend() as connection, connection.transaction():
            row = connection.execute(SQL[name], parameters).fetchone()
            if row and row[0]:
                return
            recorded = connection.execute(SQL["is_recorded"], parameters).fetchone()
        if not (recorded and recorded[0]):
            log.error("email=%s is no longer ours: %s refused", parameters["id"], name)

    def _all(self, name: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        with self._link.lend() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(SQL[name], parameters).fetchall()
            return rows


def _route(connection: Connection, mail: SubmissionRow) -> Route:
    domain = normal_domain(domain_of(mail.from_address)) or ""
    names = [domain, unicode_domain(domain)]
    found = connection.execute(SQL["route"], {"user_id": mail.user_id, "names": names}).fetchone()
    if found is None:
        return Route(courier=mail.courier)
    row = RouteRow._make(found)
    return Route(
        courier=mail.courier,
        region=row.region or "",
        configuration_set=row.configuration_set,
        track_opens=row.track_opens,
        track_clicks=row.track_clicks,
        tracking_host=row.tracking_host,
        one_click=row.one_click,
    )


def _key(job: Job) -> dict[str, Any]:
    return {"id": job.email_id, "lease_id": job.lease_id}


def _event(kind: str, source_id: str, user_id: str | None, payload: object) -> dict[str, Any]:
    return {"type": kind, "source_id": source_id, "user_id": user_id, "payload": json.dumps(clean(payload))}


def _turn(job: Job | TakenRow | UncertainRow) -> str:
    """Name an attempt as OpenSend does, and apart from those before a person had it tried again."""
    return f"{job.attempts + 1}" + (f".{job.rounds}" if job.rounds else "")


def _failure(key: Parameters, turn: str, user_id: str | None, reason: str) -> dict[str, Any]:
    source_id = f"provider-dead-letter:{key['id']}:{turn}"
    event = _event("failed", source_id, user_id, {"reason": reason, "attempt": int(turn.partition(".")[0])})
    ending = {"status": "failed", "is_told": True, "reason": text(reason)}
    return {**key, **event, **ending, **results(), **NOBODY}


def _fared(job: Job, reason: str, answers: Answers) -> dict[str, Any]:
    """Return what differs from a failure of the whole message where single recipients heard something of their own."""
    heard = {**dict.fromkeys(job.recipients, reason), **dict(answers.refused)}
    lost = tuple((address, why) for address, why in heard.items() if not is_unknown(why))
    attempt = {"attempt": job.attempts + 1}
    found = answered(job, answers, len(job.recipients), **({} if lost else attempt))
    if not answers.refused:
        return found
    found |= results(tuple(heard.items()))
    if lost:
        told = {"reason": reason, **attempt, "refused": listed(lost)}
        found |= {"payload": json.dumps(clean(told))}
    if found["unknown"]:
        found |= {"status": "bounced", "is_told": bool(lost)}
    if not lost:
        found |= {"source_id": found["report_ids"][0]}
    return found


def _answered(job: Job, sent: Sent) -> dict[str, Any]:
    answers = Answers(courier=sent.courier, host=sent.host, refused=sent.refused)
    return answered(job, answers, len(job.recipients) - len(sent.deferred)) | {
        "provider_id": sent.provider_id and text(sent.provider_id)
    }
