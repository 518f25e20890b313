"""What became of each recipient, whatever is recorded of the message."""

from __future__ import annotations

import pytest

from opensend_milter.core.fates import Fate, Result, Work, fates

ANN, BOB, CAT = "ann@example.net", "bob@example.net", "cat@example.net"


def found(
    status: str,
    *,
    results: dict[str, Result] | None = None,
    left_out: dict[str, str] | None = None,
    work: Work | None = None,
) -> list[tuple[str, str, str | None]]:
    told = fates(status=status, recipients=[ANN, BOB, CAT], results=results or {}, left_out=left_out or {}, work=work)
    assert all(isinstance(fate, Fate) for fate in told)
    return [(fate.email[:3], fate.status, fate.reason) for fate in told]


def result(outcome: str) -> Result:
    return Result(outcome=outcome, reason=f"was {outcome}")


def work(state: str, *, attempts: int = 0, left: list[str] | None = None) -> Work:
    return Work(state=state, attempts=attempts, left=left, reason="last" if attempts else None)


@pytest.mark.parametrize("status", ["sent", "delivered", "bounced", "failed", "canceled", "queued", "complained"])
def test_what_is_known_of_the_message_alone_holds_for_all(status: str) -> None:
    """As OpenSend's own worker leaves a row."""
    assert found(status) == [("ann", status, None), ("bob", status, None), ("cat", status, None)]


@pytest.mark.parametrize(
    ("at_work", "status", "reason"),
    [
        (work("waiting"), "queued", None),
        (work("claimed"), "queued", None),
        (work("attempting", attempts=1), "processing", "last"),
        (work("uncertain", attempts=1), "uncertain", "last"),
        (work("waiting", attempts=2), "deferred", "last"),
        (work("claimed", attempts=2), "deferred", "last"),
    ],
)
def test_a_delivery_that_is_not_finished_is_none(at_work: Work, status: str, reason: str | None) -> None:
    assert found("queued", work=at_work) == [("ann", status, reason), ("bob", status, reason), ("cat", status, reason)]


def test_each_of_three_has_a_fate_of_its_own() -> None:
    """One was taken, one is tried again, one was refused."""
    noted = {BOB: result("deferred"), CAT: result("refused")}
    expected = [("ann", "sent", None), ("bob", "deferred", "was deferred"), ("cat", "failed", "was refused")]
    assert found("queued", results=noted, work=work("waiting", attempts=1, left=[BOB])) == expected
    tried_again = work("uncertain", attempts=2, left=[BOB])
    assert found("processing", results=noted, work=tried_again)[1] == ("bob", "uncertain", "last")
    finished = found("sent", results={CAT: result("refused")})
    assert [status for _, status, _ in finished] == ["sent", "sent", "failed"]


@pytest.mark.parametrize("outcome", ["delivered", "bounced", "complained"])
def test_a_report_of_one_says_nothing_of_the_others(outcome: str) -> None:
    expected = [("ann", outcome, f"was {outcome}"), ("bob", "sent", None), ("cat", "sent", None)]
    assert found(outcome, results={ANN: result(outcome)}) == expected
    assert found("queued", results={ANN: result(outcome)}, work=work("waiting", attempts=1, left=[BOB, CAT])) == [
        ("ann", outcome, f"was {outcome}"),
        ("bob", "deferred", "last"),
        ("cat", "deferred", "last"),
    ]


def test_who_was_left_out_is_told_of_last() -> None:
    assert found("sent", left_out={"dan@example.net": "bounced"})[3:] == [("dan", "suppressed", "bounced")]
