"""Ids of requests, states, and what is found in a reply."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import EmailId
from opensend_milter.core.submission import (
    Rejection,
    domains_of,
    email_of_request,
    refusal_of_request,
    reply_codes,
    request_id,
)


@given(st.uuids())
def test_a_requests_id_is_the_emails_in_other_letters(value: object) -> None:
    email_id = EmailId(str(value))
    assert email_of_request(request_id(email_id)) == email_of_request(email_id) == email_id
    assert len(request_id(email_id)) == 30


def test_ids_of_requests_sort_by_time() -> None:
    ids = sorted(new_email_id() for _ in range(100))
    assert sorted(map(request_id, ids)) == [request_id(one) for one in ids]


def test_opensend_takes_the_ids_that_come_back_by_ses() -> None:
    """Its reader of SES events knows UUIDs of versions 1 to 5 and of one variant, and drops all else unheard."""
    known = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(known.fullmatch(new_email_id()) for _ in range(100))


@given(st.integers(1, 2**62 - 1), st.integers(0, 10**12))
def test_a_refusal_over_smtp_has_an_id_that_no_email_has(number: int, milliseconds: int) -> None:
    refused_at = datetime(2026, 11, 30, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    refusal = Rejection(
        id=number,
        queue_id="4Xq",
        rule="r",
        code=550,
        enhanced="5.7.1",
        text="",
        refused_at=refused_at,
        recipients=(),
        ref=None,
    )
    found = email_of_request(refusal.request_id)
    assert found
    assert refusal_of_request(found) == number
    assert refusal_of_request(new_email_id()) is None
    named = dataclasses.replace(refusal, queue_id=request_id(new_email_id()))
    assert named.request_id == named.queue_id


@pytest.mark.parametrize("text", ["", "req_", "req_" + "8" + "0" * 25, "req_" + "u" * 26, "req_" + "0" * 27, "x", "é"])
def test_what_is_no_id_is_none(text: str) -> None:
    assert email_of_request(text) is None


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("250 2.0.0 Ok: queued as 4XabcdZ1Kz2", (250, "2.0.0", "4XabcdZ1Kz2")),
        ("550 5.1.1 no such user", (550, "5.1.1", None)),
        ("all recipients refused: 450 4.2.0 greylisted", (450, "4.2.0", None)),
        ("250 kept", (250, None, None)),
        ("kept as 250", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_codes_of_a_reply(reply: str, found: object) -> None:
    assert reply_codes(reply) == found


def test_domains_once_each() -> None:
    assert domains_of(["a@X.example", "b@x.example", '"@"@y.example']) == ["x.example", "y.example"]
