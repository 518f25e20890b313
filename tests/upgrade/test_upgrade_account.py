"""What `make upgrade-test` rests on: an account that notices all, and migrations that stay as they were applied."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import opensend_milter
from tests.upgrade.ledger import Account, Answer, Ledger, Span, Try, Verdict, settle
from tests.upgrade.reading import Told

SCHEMA = Path(opensend_milter.__file__).parent / "adapters" / "schema"
APPLIED = {
    "opensend/0001_tables": "cdb8e12dc4490b4db5e2d25448efb82a96a5b58f1f00eef5393c29d5408c2135",
    "opensend/0002_deliveries": "fd83962d3c4c8a11f7fc586020bf52ff2222813b3cc0760645fc145ee6fcd71f",
    "opensend/0003_as_opensend": "cc3f2ca934a674daa5804547d859f728d5d71c93234494190ab5d625cf9c223d",
    "ours/0001_tables": "8b0d6e221a7a51d4320791dcd16c751a29763a9f18c0ec8b39dcd19786a99a44",
    "ours/0002_names": "0d1ba37f1afa9bb2822df35a01e41f1a60b195de16ac37b29d2df751741c24ec",
    "ours/0003_delivery": "75df55feb2c25b815c9fc6e96809a39401dae489573ef716c63e8edb99e0907e",
    "ours/0004_front_door": "ea7d533c93dbefbbb4bc4ec741048d709381acc9741589f987f63367c2ed214e",
    "ours/0005_rest_rows": "161b37f50bf76ae4b64e37c691a829631ac837d13dceea18a83d15000d3fbdf6",
}
"""SHA-256 of what some database has noted: with another file `db migrate` refuses it."""


def test_an_applied_migration_is_never_changed() -> None:
    now = {name: hashlib.sha256((SCHEMA / f"{name}.sql").read_bytes()).hexdigest() for name in APPLIED}
    assert now == APPLIED


@pytest.mark.parametrize(
    ("rows", "delivered", "account"),
    [
        ("ab", "a", Account(lost=(), twice=(), unasked=())),
        ("a", "a", Account(lost=("b",), twice=(), unasked=())),
        ("ab", "", Account(lost=("a",), twice=(), unasked=())),
        ("abb", "a", Account(lost=(), twice=("b",), unasked=())),
        ("ab", "aa", Account(lost=(), twice=("a",), unasked=())),
        ("ab", "ab", Account(lost=(), twice=(), unasked=("b",))),
    ],
    ids=["all well", "no row", "not delivered", "two rows", "delivered twice", "delivered unasked"],
)
def test_each_message_is_there_once(rows: str, delivered: str, account: Account) -> None:
    """`a` and `b` were taken, and only `a` is to be delivered."""
    assert settle(taken="ab", due="a", rows=rows, delivered=delivered) == account


def test_a_message_waits_from_its_first_try_to_its_250() -> None:
    ledger = Ledger()
    tries: list[tuple[str, Verdict, int, float]] = [
        ("a", "put off", 451, 1.0), ("b", "accepted", 250, 2.0), ("a", "put off", 0, 3.0), ("a", "accepted", 250, 6.0),
        ("c", "wrong", 535, 7.0), ("d", "put off", 421, 8.0),
    ]  # fmt: skip
    for name, verdict, code, at in tries:
        ledger.note(Try(name, Answer(verdict, code, "said"), at, at + 0.5))
    assert ledger.accepted() == {"a", "b"}
    assert ledger.given_up() == {"c", "d"}
    assert ledger.wrong() == ["c: 535 said"]
    assert ledger.refusals() == {"451: said": 1, "no answer: said": 1, "421: said": 1}
    assert ledger.between(2.0, 7.0) == Span(took_s=5.0, accepted=2, put_off=1, longest_s=5.5)


def test_what_is_told_no_more_or_otherwise_is_named() -> None:
    before = Told(answers={"x": {"id": 1, "status": "sent", "to": ["a"]}, "y": {"id": 2}})
    assert before.missing_in(Told(answers={"y": {"id": 2, "new": 3}, "x": before.answers["x"]})) == []
    later = Told(answers={"x": {"id": 1, "status": "failed", "to": ["b"]}})
    assert sorted(before.missing_in(later)) == [
        "x: status: was 'sent', is 'failed'", "x: to: 0: was 'a', is 'b'", "y: was {'id': 2}, is None",
    ]  # fmt: skip


def test_what_was_untrue_may_be_told_otherwise() -> None:
    """And a list that was empty may be filled; nothing else."""
    one = {"email": "a", "status": "processing", "reason": None}
    before = Told(
        answers={"GET x": {"id": 1, "attempts": 0, "recipients": [one]}, "show x": {"recipients": [], "attempts": 1}}
    )
    other = {"email": "a", "status": "uncertain", "reason": "lost"}
    later = Told(
        answers={
            "GET x": {"id": 1, "attempts": 2, "recipients": [other]},
            "show x": {"recipients": [other], "attempts": 2},
        }
    )
    assert before.missing_in(later) == ["show x: attempts: was 1, is 2"]
    wrong = Told(
        answers={
            "GET x": {"id": 1, "attempts": 2, "recipients": [other | {"email": "b"}]},
            "show x": before.answers["show x"],
        }
    )
    assert before.missing_in(wrong) == ["GET x: recipients: 0: email: was 'a', is 'b'"]
