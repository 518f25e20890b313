"""OpenSend's row: who is shown how, which fields go along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from opensend_milter.adapters.postgres import intake_rows
from opensend_milter.core import row
from opensend_milter.core.message import read
from opensend_milter.core.model import Address, KeyId, Limits, Mailbox, Reading, Refuse, Settlement, UserId
from opensend_milter.core.rules import Rule
from tests.unit.messages import message


def reading(head: bytes) -> Reading:
    found = read(b"From: a@example.org\r\n" + head + b"\r\n", Limits())
    assert isinstance(found, Reading)
    return found


@pytest.mark.case(32)
@pytest.mark.case(33)
def test_the_envelope_decides_and_the_header_shows() -> None:
    head = b"To: Shown <To@Example.NET>, never@example.net\r\nCc: c@example.net\r\n"
    found = row.recipients(
        [Address("To@example.net"), Address("c@example.net"), Address("hidden@example.net")], reading(head)
    )
    assert found == row.Recipients(to=(Address("To@example.net"),), cc=(Address("c@example.net"),),
                                   bcc=(Address("hidden@example.net"),))  # fmt: skip


@pytest.mark.case(34)
@pytest.mark.parametrize(
    ("head", "to", "bcc"),
    [
        (b"", [], ["x@example.net"]),
        (b"To: undisclosed-recipients:;\r\n", [], ["x@example.net"]),
        (b"To: Team: x@example.net, y@example.net;\r\n", ["x@example.net"], []),
    ],
)
def test_no_to_header_and_groups(head: bytes, to: list[str], bcc: list[str]) -> None:
    found = row.recipients([Address("x@example.net")], reading(head))
    assert (list(found.to), list(found.bcc)) == (to, bcc)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "a@example.org"),
        ("Jane", "Jane <a@example.org>"),
        ("Doe, Jane", '"Doe, Jane" <a@example.org>'),
        ("Jürgen", "=?utf-8?q?J=C3=BCrgen?= <a@example.org>"),
        ("x" * 600, "a@example.org"),
    ],
)
def test_from_keeps_its_name_where_the_column_holds_it(name: str, expected: str) -> None:
    assert row.sender(Mailbox(name, Address("a@example.org"))) == expected


@pytest.mark.case(47)
def test_headers_are_those_ses_accepts_and_the_worker_does_not_write() -> None:
    head = (
        b"To: b@example.net\r\nBcc: secret@example.net\r\nReceived: x\r\nDKIM-Signature: v=1\r\n"
        b"Content-Language: en\r\n"
        b"Resent-To: r@example.net\r\nX-OpenSend-Tag: t\r\nReferences: <1@x>\r\n <2@x>\r\n"
        b"List-Unsubscribe: <https://example.org/u>, <mailto:u@example.org>\r\n"
        b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
        b"X-Long: " + b"y" * 871 + b"\r\nX-Eight: " + "é".encode() + b"\r\nX-Empty:\r\nX-" + b"n" * 125 + b": 1\r\n"
    )
    found = row.headers(reading(head))
    assert found.kept == {
        "references": "<1@x> <2@x>",
        "list-unsubscribe": "<https://example.org/u>, <mailto:u@example.org>",
        "list-unsubscribe-post": "List-Unsubscribe=One-Click",
        "x-twice": "1",
    }
    assert found.left_out == (
        "x-twice: repeated",
        "x-long: longer than 870 characters",
        "x-eight: not printable ASCII",
        "x-empty: empty",
        "x-nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn: its name is longer than 126 characters",
    )


def test_a_charset_that_nobody_knows_is_in_the_record() -> None:
    found = row.headers(reading(b"Content-Type: text/plain; charset=x-foo\r\n"))
    assert found.left_out == ("text in x-foo: unknown, read as UTF-8 or windows-1252",)


@pytest.mark.case(47)
def test_fields_of_one_hop_are_left_out_without_a_note() -> None:
    names = ["Sender", "Delivered-To", "Authentication-Results", "Return-Path", "X-Originating-IP", "DKIM-Signature",
             "ARC-Seal", "Resent-From", "X-SES-Configuration-Set", "Content-Transfer-Encoding"]  # fmt: skip
    assert row.headers(reading("".join(f"{name}: x\r\n" for name in names).encode())) == row.Headers(
        kept={}, left_out=()
    )


@pytest.mark.case(72)
@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (b"text/plain", b"", "\r\n"),
        (b"text/plain", b"\r\n", "\r\n"),
        (b"text/plain", b" ", " "),
        (b"text/html", b"", "\r\n"),
        (b"text/html", b"<p>", ""),
        (b"application/pdf", b"", ""),
        (b"multipart/alternative; boundary=b", b"--b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n--b--\r\n", "\r\n"),
        (b"multipart/mixed; boundary=b", b"--b\r\n\r\n--b\r\nContent-Type: image/png\r\n\r\n--b--\r\n", ""),
    ],
)
def test_a_message_that_says_nothing_has_a_line_end_as_text(kind: bytes, body: bytes, text: str) -> None:
    """OpenSend's worker would hand SES an empty body, which it refuses."""
    found = read(b"From: a@example.org\r\nContent-Type: " + kind + b"\r\n\r\n" + body, Limits())
    assert isinstance(found, Reading)
    assert row.text(found) == text


# ---------------------------------------------------------------------- References

LONGEST = 870


def references(value: str) -> tuple[str | None, tuple[str, ...]]:
    found = row.headers(replace(reading(b""), fields=(("references", value),)))
    assert found.kept.keys() <= {"references"}
    return found.kept.get("references"), found.left_out


def ids(*lengths: int) -> list[str]:
    return [f"<{number}{'x' * (length - 2 - len(str(number)))}>" for number, length in enumerate(lengths, 1)]


MANY = ids(*[39] * 60)


@pytest.mark.case(47)
@pytest.mark.parametrize(
    ("given_ids", "kept", "note"),
    [
        (ids(434, 435), [1, 2], None),
        (ids(434, 436), [], "longer than 870 characters"),
        (ids(871), [], "longer than 870 characters"),
        (ids(290, 289, 289), [1, 2, 3], None),
        (ids(290, 289, 290), [], "longer than 870 characters"),
        (ids(290, 9, 289, 289), [1, 3, 4], "shortened, 3 of 4 ids kept"),
        (ids(290, 9, 289, 290), [], "longer than 870 characters"),
        (ids(290, 289, 9, 289), [1, 3, 4], "shortened, 3 of 4 ids kept"),
        (ids(10, 9, 9, 500, 9, 425), [1, 5, 6], "shortened, 3 of 6 ids kept"),
        (ids(10, 9, 820, 9, 9, 9), [1, 3, 4, 5, 6], "shortened, 5 of 6 ids kept"),
        (ids(10, 900, 9, 9), [1, 3, 4], "shortened, 3 of 4 ids kept"),
        (MANY, [1, *range(41, 61)], "shortened, 21 of 60 ids kept"),
    ],
)
def test_references_keep_the_first_id_and_the_newest(
    given_ids: Sequence[str], kept: list[int], note: str | None
) -> None:
    """The first and the last two are never removed (RFC 5537, 3.4.4)."""
    expected = " ".join(given_ids[number - 1] for number in kept) or None
    assert references(" ".join(given_ids)) == (expected, (f"references: {note}",) if note else ())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<a@x>" + " " * 900 + "<b@x>", ("<a@x> <b@x>", ())),
        ("".join(MANY), (" ".join([MANY[0], *MANY[-20:]]), ("shortened, 21 of 60 ids kept",))),
        ("\t\t".join(MANY), (" ".join([MANY[0], *MANY[-20:]]), ("shortened, 21 of 60 ids kept",))),
        (", ".join(MANY), (None, ("longer than 870 characters",))),
        (" ".join(MANY) + " and more", (None, ("longer than 870 characters",))),
        (" ".join(MANY) + " <>", (None, ("longer than 870 characters",))),
        (" ".join(MANY) + " <é@x>", (None, ("longer than 870 characters",))),
        (" ".join(MANY) + " <a b>", (None, ("longer than 870 characters",))),
        (" ".join(MANY) + " <a<b>", (None, ("longer than 870 characters",))),
        (" " * 900, (None, ("longer than 870 characters",))),
    ],
)  # fmt: skip
def test_references_of_another_shape(value: str, expected: tuple[str | None, tuple[str, ...]]) -> None:
    """However the ids are set apart, they are kept; with anything else among them all is left out as before."""
    kept, notes = expected
    assert references(value) == (kept, tuple(f"references: {note}" for note in notes))


LENGTHS = st.lists(st.integers(5, 60), min_size=30, max_size=60) | st.lists(st.integers(5, 500), min_size=1, max_size=9)


@given(LENGTHS, st.sampled_from([" ", "", "   ", "\t "]))
def test_references_are_the_first_and_as_many_of_the_newest_as_fit(lengths: list[int], between: str) -> None:
    given_ids = ids(*lengths)
    value = between.join(given_ids)
    kept, notes = references(value)
    if len(value) <= LONGEST:
        assert (kept, notes) == (value.replace("\t", " "), ())
        return
    shortest = [given_ids[0], *given_ids[1:][-2:]]
    if len(" ".join(shortest)) > LONGEST:
        assert (kept, notes) == (None, ("references: longer than 870 characters",))
        return
    assert kept is not None
    found = kept.split(" ")
    assert found == [given_ids[0], *given_ids[len(given_ids) - len(found) + 1 :]]
    assert found[-2:] == given_ids[-2:]
    removed = len(given_ids) - len(found)
    assert notes == ((f"references: shortened, {len(found)} of {len(given_ids)} ids kept",) if removed else ())
    one_more = [given_ids[0], *given_ids[len(given_ids) - len(found) :]]
    assert len(kept) <= LONGEST
    assert not removed or len(" ".join(one_more)) > LONGEST


@given(st.text(st.sampled_from("<>@a \t,é\x00"), min_size=850, max_size=1_000))
def test_references_of_any_text_are_what_ses_takes_or_left_out(value: str) -> None:
    kept, notes = references(value)
    assert kept is None or (1 <= len(kept) <= LONGEST and kept.isascii() and kept.isprintable())
    assert notes if kept is None else len(notes) <= 1


def test_other_fields_are_not_shortened() -> None:
    value = " ".join(MANY)
    found = row.headers(replace(reading(b""), fields=(("x-references", value), ("in-reply-to", value))))
    assert found == row.Headers(
        kept={}, left_out=("x-references: longer than 870 characters", "in-reply-to: longer than 870 characters")
    )


def test_a_note_is_made_only_of_references_that_go_along() -> None:
    value = " ".join(MANY)
    others = tuple((f"x-{number}", "1") for number in range(14))
    found = row.headers(replace(reading(b""), fields=(*others, ("references", value), ("references", "<a@x>"))))
    assert found.left_out == ("references: over 14 fields", "references: over 14 fields")
    found = row.headers(replace(reading(b""), fields=(("references", "<a@x>"), ("references", value))))
    assert found == row.Headers(kept={"references": "<a@x>"}, left_out=("references: repeated",))


# ---------------------------------------------------------------------- the event of suppressed recipients


@pytest.mark.parametrize(
    ("at", "written"),
    [
        (datetime(2026, 11, 29, 8, tzinfo=UTC), "2026-11-29T08:00:00.000Z"),
        (datetime(2026, 11, 29, 8, 0, 0, 123_999, tzinfo=UTC), "2026-11-29T08:00:00.123Z"),
        (datetime(2026, 11, 29, 9, 30, tzinfo=timezone(timedelta(hours=1))), "2026-11-29T08:30:00.000Z"),
    ],
)
def test_the_event_of_a_suppression_writes_its_time_as_rest_does(at: datetime, written: str) -> None:
    refusal = Refuse(code=550, enhanced="5.7.1", text="no", rule=Rule.RECIPIENT_SUPPRESSED)
    found = intake_rows.event_values(
        Settlement(
            message=replace(message(), received_at=at),
            verdict=refusal,
            user_id=UserId("shop"),
            suppressed=((Address("B@example.net"), "bounced"),),
            from_address=Address("app@example.org"),
            subject="hi \x00" + "x" * 5_000,
        )
    )
    payload = json.loads(found["payloads"])
    assert payload.pop("subject") == "hi \ufffd" + "x" * 996
    assert payload == {
        "reason": "recipient_suppressed",
        "recipients": [{"email": "b@example.net", "reason": "bounced"}],
        "recipient_count": 1,
        "submitted_at": written,
        "key_id": message().session.key_id,
        "queue_id": message().queue_id,
        "message_id": None,
        "from": "app@example.org",
    }


@pytest.mark.case(4)
def test_what_a_broken_peer_says_of_a_message_can_be_recorded() -> None:
    """Postgres takes neither NUL nor half a surrogate: one odd macro must not cost the batch its record."""
    odd = "4X\udc80\x00"
    plain = message()
    found = replace(
        plain,
        queue_id=odd,
        envelope=replace(plain.envelope, sender=odd),
        session=replace(plain.session, client_address=odd, key_id=KeyId(odd)),
    )
    refusal = Refuse(code=550, enhanced="5.7.1", text=odd, rule=Rule.NOT_A_KEY)
    values = intake_rows.refuse_values(Settlement(message=found, verdict=refusal, message_id=odd), refusal)
    for text in (value for value in values.values() if isinstance(value, str)):
        assert "\x00" not in text
        assert "\\u0000" not in text
        text.encode("utf-8")
