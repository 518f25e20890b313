"""How findings come about, and how versions, clocks and queues are judged: no host is needed for that."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from opensend_milter.adapters.admin.inspection import judged_clock
from opensend_milter.adapters.aws import sns_inspection, sqs_inspection
from opensend_milter.config import Config, Delivery
from opensend_milter.core.errors import ConfigError, UsageError
from opensend_milter.core.findings import Check, Result, Seen, chosen, examine, good, problem, skipped, warning
from opensend_milter.host.examining import dovecot as checks_dovecot, postfix as checks_postfix

OURS = "password_query = SELECT id FROM opensend_milter.key_id('%{sha256:password}')\nauth_cache_size = 0\n"
BY_NAME = "query = SELECT password FROM users WHERE name = '%{user}'\n"


def check(name: str, look: Callable[[], Seen], needs: str = "") -> Check:
    return Check(name=name, why="because", look=look, needs=needs)


def broken() -> Seen:
    raise ZeroDivisionError("a host that nobody thought of")


def forbidden() -> Seen:
    raise PermissionError(13, "Permission denied", "/etc/shadow")


def unusable() -> Seen:
    raise UsageError("not like this")


def closed() -> Seen:
    raise ConfigError("tls.key: /etc/key: Permission denied") from PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("look", "result", "text"),
    [
        (lambda: good("all of it"), Result.GOOD, "all of it"),
        (unusable, Result.PROBLEM, "not like this"),
        (forbidden, Result.SKIPPED, "/etc/shadow may not be looked at: run it as root"),
        (closed, Result.SKIPPED, "tls.key: /etc/key: Permission denied: run it as root"),
        (broken, Result.PROBLEM, "could not be looked at: ZeroDivisionError"),
    ],
)
def test_a_check_never_ends_the_examination(look: Callable[[], Seen], result: Result, text: str) -> None:
    checks = [check("one.thing", look), check("another.thing", lambda: good("fine"))]
    first, second = examine(checks, checks)
    assert (first.result, second.result) == (result, Result.GOOD)
    assert text in first.seen


@pytest.mark.parametrize("first", [problem("down"), skipped("not configured")])
def test_what_needs_another_check_is_skipped_without_it(first: Seen) -> None:
    checks = [check("part.first", lambda: first), check("part.second", broken, needs="part.first")]
    assert [one.seen for one in examine(checks, checks[1:])] == ["needs part.first"]


def test_what_another_check_warns_of_is_no_obstacle() -> None:
    checks = [check("part.first", lambda: warning("slow")), check("part.second", lambda: good("fine"), "part.first")]
    assert [one.result for one in examine(checks, checks)] == [Result.WARNING, Result.GOOD]


def test_each_check_looks_once() -> None:
    looks: list[int] = []

    def look() -> Seen:
        looks.append(1)
        return good("fine")

    checks = [check("a.first", look), check("a.second", look, needs="a.first"), check("a.third", look, needs="a.first")]
    assert len(list(examine(checks, checks))) == 3
    assert len(looks) == 3


def test_checks_are_chosen_by_name_or_part() -> None:
    checks = [check("postfix.relay", broken), check("postfix.hold", broken), check("tls.expiry", broken)]
    assert chosen(checks, []) == checks
    assert chosen(checks, ["postfix"]) == checks[:2]
    assert chosen(checks, ["tls.expiry", "postfix.hold"]) == checks[1:]
    with pytest.raises(UsageError, match="no check is called 'relay'; the parts are postfix, tls"):
        chosen(checks, ["relay"])


@pytest.mark.parametrize(
    ("version", "has_parameter", "result"),
    [
        ("3.7.11", True, Result.GOOD),
        ("3.7.9", True, Result.GOOD),
        ("3.7.8", False, Result.PROBLEM),
        ("3.7.6", True, Result.GOOD),  # a distribution's mend
        ("3.6.12", False, Result.PROBLEM),
        ("3.6.13", True, Result.GOOD),
        ("3.8.3", False, Result.PROBLEM),
        ("3.8.4", True, Result.GOOD),
        ("3.10.1", True, Result.GOOD),
        ("4.0-20271231", True, Result.GOOD),
        ("3.5.25", True, Result.PROBLEM),  # too old for our templates
        ("2.11.3", False, Result.PROBLEM),
        ("", False, Result.PROBLEM),
    ],
)
def test_postfix_versions(version: str, has_parameter: bool, result: Result) -> None:  # noqa: FBT001
    assert checks_postfix.judged_version(version, forbids_bare_newline=has_parameter).result is result


@pytest.mark.parametrize(
    ("version", "content", "result", "named"),
    [
        ("2.3.19.1", OURS, Result.GOOD, "CVE-2022-30550"),
        ("2.3.21.1", OURS, Result.GOOD, "no known hole"),
        ("2.4.1", OURS, Result.GOOD, "CVE-2025-30189"),
        ("2.4.1", "auth_cache_size = 10M\n", Result.PROBLEM, "CVE-2025-30189"),
        ("2.4.2", "auth_cache_size = 10M\n", Result.GOOD, "no known hole"),
        ("2.4.2", OURS + BY_NAME, Result.PROBLEM, "CVE-2026-24031"),
        ("2.4.3", OURS + BY_NAME, Result.GOOD, "no known hole"),
        ("2.4.2", f"# {BY_NAME}", Result.GOOD, "CVE-2026-24031"),
        ("2.2.36", OURS, Result.PROBLEM, "2.3 or 2.4 is needed"),
    ],
)
def test_dovecot_versions(version: str, content: str, result: Result, named: str) -> None:
    seen = checks_dovecot.judged_version(version, content)
    assert seen.result is result
    assert named in seen.text


@pytest.mark.parametrize(
    ("difference_s", "result"),
    [(0.2, Result.GOOD), (-4, Result.GOOD), (9, Result.WARNING), (-60, Result.WARNING), (-121, Result.PROBLEM)],
)
def test_the_clock_of_the_database(difference_s: float, result: Result) -> None:
    assert judged_clock(difference_s).result is result


REDRIVE = json.dumps({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:1:dead", "maxReceiveCount": "{}"})


@pytest.mark.parametrize(
    ("policy", "result"),
    [
        ("", Result.WARNING),
        (REDRIVE.replace("{}", "1"), Result.WARNING),
        (REDRIVE.replace("{}", "10"), Result.GOOD),
    ],
)
def test_the_way_out_of_a_queue(policy: str, result: Result) -> None:
    assert sqs_inspection.judged_redrive("http://queue", {"RedrivePolicy": policy}).result is result


@pytest.mark.parametrize(
    ("waiting", "in_hand", "oldest_s", "result"),
    [
        (0, 0, 9_999, Result.GOOD),
        (50, 0, 10, Result.GOOD),
        (50, 3, 9_999, Result.GOOD),
        (50, 0, 9_999, Result.PROBLEM),
    ],
)
def test_a_queue_that_nobody_reads(waiting: int, in_hand: int, oldest_s: float, result: Result) -> None:
    attributes = {
        "ApproximateNumberOfMessages": str(waiting),
        "ApproximateNumberOfMessagesNotVisible": str(in_hand),
    }
    assert sqs_inspection.judged_reading(attributes, oldest_s).result is result


@pytest.mark.parametrize(
    ("url", "attributes", "result"),
    [
        ("https://sqs/1/jobs", {}, Result.GOOD),
        ("https://sqs/1/jobs.fifo", {"FifoQueue": "true"}, Result.GOOD),
        ("https://sqs/1/jobs", {"FifoQueue": "true"}, Result.PROBLEM),
        ("https://sqs/1/jobs.fifo", {}, Result.PROBLEM),
    ],
)
def test_the_kind_of_a_queue(url: str, attributes: dict[str, str], result: Result) -> None:
    assert sqs_inspection.judged_kind(url, attributes).result is result


@pytest.mark.parametrize(("visible_s", "result"), [("30", Result.GOOD), ("5", Result.WARNING), ("0", Result.WARNING)])
def test_how_long_a_message_is_hidden(visible_s: str, result: Result) -> None:
    config = Config(delivery=Delivery(lease_s=120))
    seen = sqs_inspection.judged_visibility(config, {"VisibilityTimeout": visible_s})
    assert seen.result is result
    assert result is Result.GOOD or "VisibilityTimeout=120" in seen.mend


@pytest.mark.parametrize(
    ("versions", "require_sha256", "result"),
    [
        ({"a": "2", "b": "2"}, True, Result.GOOD),
        ({"a": "2", "b": "1"}, False, Result.WARNING),
        ({"a": "2", "b": "1"}, True, Result.PROBLEM),
    ],
)
def test_a_topic_that_signs_with_sha1(versions: dict[str, str], require_sha256: bool, result: Result) -> None:  # noqa: FBT001
    seen = sns_inspection.judged_signatures(versions, require_sha256=require_sha256)
    assert seen.result is result
    told = "aws sns set-topic-attributes --topic-arn b --attribute-name SignatureVersion --attribute-value 2"
    assert seen.mend == ("" if result is Result.GOOD else told)
