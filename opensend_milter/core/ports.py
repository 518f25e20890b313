"""What the core asks of the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opensend_milter.core.model import (
    Announcement,
    Answers,
    EmailId,
    Facts,
    Job,
    Lane,
    Notice,
    Parcel,
    Question,
    Sent,
    Settlement,
)


class IntakeStore(Protocol):
    """The way in. Raises StoreUnavailable when the answer is unknown."""

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        """Answer for a batch in one round trip."""
        ...

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Store rows, raw bytes, jobs and refusals in one transaction; return after COMMIT.

        Raise AlreadyStored, and store nothing, where somebody else has stored one of them since `facts_for`.
        """
        ...


class JobStore(Protocol):
    """The way out, for one thread. Raises StoreUnavailable."""

    def due_announcements(self, limit: int) -> list[Announcement]:
        """Take emails whose job is to be announced; they come again after a minute if nobody says more."""
        ...

    def announced(self, email_ids: Sequence[EmailId]) -> None:
        """Note that the queue has these."""
        ...

    def announce_again(self, email_ids: Sequence[EmailId], after_s: float) -> None:
        """Note that the queue does not have these."""
        ...

    def due_lanes(self) -> list[Lane]:
        """List whose jobs are due, each lane once."""
        ...

    def claim(self, email_id: EmailId) -> Job | None:
        """Claim one email, or None where it is not to be sent now."""
        ...

    def claim_due(self, lane: Lane, *, waits: bool = False) -> Job | None:
        """Claim the email that has waited longest in this lane; with `waits` no row is passed over for its lock."""
        ...

    def begin(self, job: Job) -> bool:
        """Commit that the attempt begins; False where the claim is no longer ours."""
        ...

    def give_back(self, job: Job) -> None:
        """Undo a claim for which not one byte went out."""
        ...

    def record_sent(self, job: Job, sent: Sent) -> None:
        """Close the job. This and the other records may be repeated: the first that arrives counts."""
        ...

    def record_deferred(self, job: Job, reason: str, wait_s: float) -> None: ...

    def record_partly(self, job: Job, sent: Sent, wait_s: float) -> None:
        """Note who has it, and let those wait who are to be tried again."""
        ...

    def record_failed(self, job: Job, reason: str, answers: Answers | None = None) -> None:
        """Close the job: nobody got it. `answers`: where single recipients heard something of their own."""
        ...

    def record_uncertain(self, job: Job, reason: str) -> None: ...

    def extend(self, jobs: Sequence[Job]) -> None:
        """Put off the end of the leases of these."""
        ...

    def release_expired(self) -> int:
        """Give back claims whose worker died; mark begun ones uncertain; fail those uncertain for too long.

        Return how many.
        """
        ...

    def end_moved_on(self) -> int:
        """End jobs whose email was taken up without us, where others deliver; return how many."""
        ...

    def make_whole(self) -> int:
        """Let all that waits be fit for OpenSend's worker, where that delivers; return how many were not."""
        ...

    def set_right(self) -> int:
        """Let be due what waits by a database's clock that was ahead and is not any more. Return how many."""
        ...

    def prune(self) -> int:
        """Delete what is kept for a time only. Return how much."""
        ...

    def close(self) -> None: ...


class JobQueue(Protocol):
    """Where announcements go and notices come from; for any number of threads. Raises QueueUnavailable."""

    def announce(self, announcements: Sequence[Announcement]) -> list[EmailId]:
        """Send up to ten; return those that the queue took."""
        ...

    def receive(self, wait_s: float) -> list[Notice]:
        """Wait for notices; each comes again after the lease unless `done`."""
        ...

    def done(self, notice: Notice) -> None: ...

    def give_back(self, notice: Notice) -> None:
        """Let it come again at once."""
        ...

    def extend(self, notices: Sequence[Notice]) -> None:
        """Keep these in hand for another lease."""
        ...


class Courier(Protocol):
    """How a message leaves, for one thread. Raises DeliveryDeferred, DeliveryRefused or DeliveryUncertain."""

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over; return when the next hop has answered for it."""
        ...

    def rest(self) -> None:
        """Nothing is due: let go of what has not been used for a while."""
        ...

    def abort(self) -> None:
        """End what is in hand, from another thread: `send` raises what is true then."""
        ...

    def close(self) -> None: ...
