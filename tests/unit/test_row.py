"""OpenSend's row: who is shown how, which fields go along."""

from __future__ import annotations

import pytest

from opensend_milter.core import row
from opensend_milter.core.message import read
from opensend_milter.core.model import Address, Limits, Mailbox, Reading


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
