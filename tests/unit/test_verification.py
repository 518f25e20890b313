"""A domain's status follows from the proof that its owner has it."""

from __future__ import annotations

import pytest

from opensend_milter.core.dns_records import RecordState
from opensend_milter.core.verification import settled

LACKING = [RecordState.MISSING, RecordState.WRONG]


@pytest.mark.parametrize("status", ["not_started", "pending", "verified"])
@pytest.mark.parametrize("withdraw", [False, True])
def test_a_proof_verifies(status: str, *, withdraw: bool) -> None:
    told = "" if status == "verified" else "verified now"
    assert settled(status, RecordState.FOUND, withdraw=withdraw) == ("verified", told)


@pytest.mark.parametrize("status", ["pending", "verified"])
@pytest.mark.parametrize("withdraw", [False, True])
@pytest.mark.parametrize("proof", [RecordState.UNKNOWN, RecordState.NOT_NEEDED])
def test_what_dns_does_not_say_or_is_not_asked_changes_nothing(
    status: str, proof: RecordState, *, withdraw: bool
) -> None:
    assert settled(status, proof, withdraw=withdraw).status == status


@pytest.mark.parametrize("proof", LACKING)
def test_without_a_proof_a_verified_domain_stays_so_unless_that_is_withdrawn(proof: RecordState) -> None:
    kept = settled("verified", proof, withdraw=False)
    assert kept.status == "verified"
    assert kept.note.startswith("warning: ")
    assert settled("verified", proof, withdraw=True).status == "pending"


@pytest.mark.parametrize("proof", LACKING)
@pytest.mark.parametrize("withdraw", [False, True])
def test_without_a_proof_no_domain_is_verified(proof: RecordState, *, withdraw: bool) -> None:
    assert settled("not_started", proof, withdraw=withdraw) == ("not_started", "")
