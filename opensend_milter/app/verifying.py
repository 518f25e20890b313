"""What `domain verify` does with one domain: DNS and the database are asked, the rule is in core/verification.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from opensend_milter.adapters.admin.verification import Domain, find_domain, list_domains, set_status
from opensend_milter.adapters.dns import DnsResolver
from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.app.sender_records import token_for, verifies, wanted_for
from opensend_milter.config import Config
from opensend_milter.core.dns_records import Record, RecordState, Resolver, records
from opensend_milter.core.errors import UsageError
from opensend_milter.core.verification import settled

MAY_NOT = "nothing was changed: only the owner of the tables may (DATABASE_URL)"
NOT_OURS = "profile is opensend, and OpenSend verifies domains: use its dashboard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What became of one domain."""

    name: str
    user_id: str | None
    before: str
    status: str
    proof: RecordState
    """How the ownership record stands."""
    note: str
    records: list[Record] = field(default_factory=list)

    @property
    def is_proved(self) -> bool:
        """It is as whoever verifies wants it."""
        return self.proof is RecordState.FOUND or (self.proof is RecordState.NOT_NEEDED and self.status == "verified")

    @property
    def is_unanswered(self) -> bool:
        """DNS did not answer for what decides; where nothing does, for anything."""
        asked = {one.state for one in self.records if one.is_needed}
        return self.proof is RecordState.UNKNOWN or asked == {RecordState.UNKNOWN}


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Verifies domains over one connection."""

    config: Config
    connection: Connection
    nameserver: str

    @cached_property
    def _resolver(self) -> Resolver:
        return DnsResolver(self.nameserver)

    def domains(self, name: str | None, user: str | None) -> list[Domain]:
        """Return the one that is named, or all."""
        if name is None:
            return list_domains(self.connection, user)
        return [find_domain(self.connection, name, user)]

    def vouch(self, domain: Domain) -> Verification:
        """Verify it unseen."""
        self._must_be_ours()
        if not set_status(self.connection, domain, "verified"):
            raise UsageError(MAY_NOT)
        return Verification(
            name=domain.name,
            user_id=domain.user_id,
            before=domain.status,
            status="verified",
            proof=RecordState.FOUND,
            note="vouched for: nothing was looked up",
        )

    def verify(self, domain: Domain, selectors: Sequence[str], *, withdraw: bool) -> Verification:
        """Ask DNS; verify it where its owner is proved."""
        if withdraw:
            self._must_be_ours()
        wanted = wanted_for(self.config, self.connection, domain, token=self._token(domain), selectors=selectors)
        found = records(self._resolver, wanted)
        proof = found[0].state
        status, note = settled(domain.status, proof, withdraw=withdraw)
        if status != domain.status and not set_status(self.connection, domain, status):
            status, note = domain.status, MAY_NOT
        return Verification(
            name=domain.name,
            user_id=domain.user_id,
            before=domain.status,
            status=status,
            proof=proof,
            note=note,
            records=found,
        )

    def _must_be_ours(self) -> None:
        if not verifies(self.config):
            raise UsageError(NOT_OURS)

    def _token(self, domain: Domain) -> str:
        if verifies(self.config) and not domain.user_id:
            raise UsageError(f"{domain.name} belongs to no user: nobody could prove that it is theirs")
        return token_for(self.config, self.connection, domain)
