"""The table of rules: what each door says, held against what it said before there was a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from opensend_milter.core import rules
from opensend_milter.core.model import Refuse, refuse
from opensend_milter.core.request import Dialect
from opensend_milter.core.rules import Reply, Rule
from opensend_milter.servers.web import records

PACKAGE = Path(__file__).parents[2] / "opensend_milter"
SAID = [
    # rule, SMTP, HTTP, OpenSend's log, the field in rele's words and in Resend's
    ("unauthenticated", "530 5.7.0", "401 unauthorized", 401, "", ""),
    ("not-a-key", "550 5.7.1", "403 forbidden", 403, "", ""),
    ("key-revoked", "550 5.7.1", "403 forbidden", 401, "", ""),
    ("key-expired", "550 5.7.1", "403 forbidden", 401, "", ""),
    ("network-not-allowed", "550 5.7.1", "403 forbidden", 403, "", ""),
    ("network-unknown", "451 4.3.5", "503 unavailable", 503, "", ""),
    ("sender-not-allowed", "550 5.7.1", "403 forbidden", 403, "from", "from"),
    ("recipient-not-allowed", "550 5.7.1", "403 forbidden", 403, "to", "to"),
    ("attachments-not-allowed", "550 5.7.1", "403 forbidden", 403, "attachments", "attachments"),
    ("html-not-allowed", "550 5.7.1", "403 forbidden", 403, "body_html", "html"),
    ("daily-quota", "452 4.7.1", "429 quota_exceeded", 429, "", ""),
    ("from-missing", "550 5.7.1", "400 validation_failed", 422, "from", "from"),
    ("from-not-one", "550 5.7.1", "400 validation_failed", 422, "from", "from"),
    ("from-malformed", "550 5.7.1", "400 validation_failed", 422, "from", "from"),
    ("from-restricted", "550 5.7.1", "400 validation_failed", 403, "from", "from"),
    ("from-unverified", "550 5.7.1", "400 validation_failed", 403, "from", "from"),
    ("recipient-malformed", "550 5.1.3", "400 validation_failed", 422, "to", "to"),
    ("recipient-suppressed", "550 5.7.1", "400 validation_failed", 422, "to", "to"),
    ("too-many-recipients", "550 5.5.3", "400 validation_failed", 422, "to", "to"),
    ("too-large", "552 5.3.4", "413 payload_too_large", 413, "", ""),
    ("attachments-too-large", "552 5.3.4", "413 payload_too_large", 413, "attachments", "attachments"),
    ("control-field", "554 5.6.0", "400 validation_failed", 422, "send_at", "scheduled_at"),
    ("quota", "452 4.7.1, 550 5.7.1", "402 quota_exceeded", 402, "", ""),
    ("duplicate-key", "550 5.7.1", "409 idempotency_conflict", 409, "", ""),
    ("rate-limited", "451 4.7.1", "429 rate_limited", 429, "", ""),
    ("sandbox-mixed", "550 5.7.1", "400 validation_failed", 422, "to", "to"),
    ("beyond-limits", "554 5.6.0", "400 validation_failed", 422, "", ""),
    ("cannot-carry", "554 5.6.0, 554 5.6.7", "400 validation_failed", 422, "", ""),
    ("ours", "421 4.3.0, 451 4.3.0", "503 unavailable", 503, "", ""),
]
"""What clients and OpenSend's dashboard rely on; a row changes only on purpose."""


@pytest.mark.parametrize("row", SAID, ids=[row[0] for row in SAID])
def test_each_rule_is_answered_as_ever(row: tuple[str, str, str, int, str, str]) -> None:
    name, smtp, http, logged, *fields = row
    (rule,) = (one for one in Rule if one.value == name)
    assert ", ".join(sorted(map(str, rule.replies))) == smtp
    assert rule.logged == logged
    told = [records.refused(refuse(rule, "no"), dialect) for dialect in get_args(Dialect)]
    assert {f"{one.status_code} {one.code}" for one in told} == {http}
    assert [one.errors for one in told] == [[{"field": one, "code": name, "message": "no"}] for one in fields]


def test_each_rule_is_in_the_golden_table() -> None:
    assert [row[0] for row in SAID] == [rule.value for rule in Rule]


def test_a_rule_says_what_it_has_first_unless_told() -> None:
    assert refuse(Rule.QUOTA, "no") == Refuse(code=550, enhanced="5.7.1", text="no", rule=Rule.QUOTA)
    unpaid = refuse(Rule.QUOTA, "no", rules.NOT_YET_PAID)
    assert unpaid == Refuse(code=452, enhanced="4.7.1", text="no", rule=Rule.QUOTA)


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.value)
def test_the_doors_agree_whether_it_is_worth_another_try(rule: Rule) -> None:
    """A client must not give up at one door what it would repeat at the other; a quota is its own status over HTTP."""
    assert all(str(reply.code)[0] == reply.enhanced[0] for reply in rule.replies)
    later = {reply.code < 500 for reply in rule.replies}
    assert (rule.http.status in {429, 503}) in later
    assert not (rule is Rule.OURS and False in later)


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.value)
def test_the_log_differs_only_where_the_rest_api_does(rule: Rule) -> None:
    """Of what cannot be taken OpenSend says 422, of a key that is no good 401, of a domain that is not its own 403."""
    assert rule.http.logged in {0, *{400: (422, 403), 403: (401,)}.get(rule.http.status, ())}
    assert rule.http.logged != rule.http.status


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
                yield path, node


def test_only_the_table_says_codes() -> None:
    assert [path.relative_to(PACKAGE).as_posix() for path, _ in calls("Refuse")] == ["core/model.py"]


def test_a_reply_that_is_chosen_is_one_of_its_rules() -> None:
    chosen = [call for _, call in calls("refuse") if len(call.args) + len(call.keywords) > 2]
    assert chosen
    for call in chosen:
        rule, _, reply = call.args
        assert isinstance(rule, ast.Attribute)
        assert isinstance(reply, ast.Name)
        named = getattr(rules, reply.id)
        assert isinstance(named, Reply)
        assert named in Rule[rule.attr].replies


def test_each_rule_is_asked_somewhere() -> None:
    asked = {
        call.args[0].attr
        for name in ("refuse", "_no")
        for _, call in calls(name)
        if call.args and isinstance(call.args[0], ast.Attribute)
    }
    assert asked == set(Rule.__members__)
