"""Makes what a stranger might send: grown from the grammar of each format, and from honest files and hostile shapes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.shapes import CODECS, SMALL

MOST_OCTETS = 60_000
"""What is longer takes longer to go through than it has to say; long ones are the business of tests/shapes.py."""
_GOLDEN = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "golden").glob("*.eml"))]
_SHAPES = [octets for shape in SMALL if len(octets := shape.octets()) <= MOST_OCTETS]
_TIMES = st.sampled_from([1] * 24 + [0, 2, 3, 3, 7, 7, 30, 30, 200, 1_000, 20_000])
"""A message has many places for them, so that one is often enough where all the others are short."""

Octets = st.SearchStrategy[bytes]


def words(*texts: str) -> Octets:
    """One of these."""
    return st.sampled_from([text.encode() for text in texts])


def joined(*parts: Octets) -> Octets:
    """All of these in turn."""
    return st.tuples(*parts).map(b"".join)


def several(part: Octets, at_most: int = 6) -> Octets:
    """Some of these."""
    return st.lists(part, max_size=at_most).map(b"".join)


def cut(octets: Octets) -> Octets:
    """The same, no longer than is gone through."""
    return octets.map(lambda made: made[:MOST_OCTETS])


_LETTERS = words(
    "a",
    "ä",
    "\u4e00",
    "\u0301",
    "\u0315",
    "\U0001f600",
    "\u200b",
    "\uff20",
    "\u3002",
    "\u017f",
    "\u212a",
    "\u0130",
    "ß",
    "\ufeff",
)
_MARKS = words(
    '"', "\\", '\\"', "(", ")", "<", ">", "@", ",", ";", ":", ".", "[", "]", "=", "?", "=?", "?=", "*", "%", "'", "/",
    "-", "--", "_", "&", "#", "+", "{", "}", "~{", "\x1b$B", "\x1b(B", "+2AA-", "xn--",
    "\0", "\r", "\n", "\r\n", "\t", " ", "\r\n ", "\x7f", "\x85", "\u2028",
)  # fmt: skip
_UNITS = _MARKS | _LETTERS | st.binary(max_size=3) | joined(_MARKS, _MARKS) | joined(_LETTERS, _MARKS)
RUNS: Octets = st.builds(lambda unit, times: (unit * times)[:MOST_OCTETS], _UNITS, _TIMES)
"""A few octets, again and again: what is not linear shows there."""
_OPENERS = words('"', "(", "<", "a", "a;b=", "a@", "[", "=?a?q?", "")
_STEPS = words(
    '"', "\\", '\\"', "(", ")", "\\(", "<", ">", "@", ",", ";", ":", ".", "=", "*", "%", "?", "=?", " ", "a", "ä",
)  # fmt: skip
ROWS: Octets = st.builds(
    lambda before, unit, octets, after: before + unit * (octets // len(unit)) + after,
    _OPENERS, _STEPS | joined(_STEPS, _STEPS), st.sampled_from([2_000, 2_000, 2_000, 50_000]), _OPENERS,
)  # fmt: skip
"""The simplest of hostile shapes: something that begins, and then one thing for ever."""
TEXT = several(words("hello", "Grüße", " ", "1", "example") | RUNS, 5)


# ---------------------------------------------------------------------- header fields

_CHARSETS = st.sampled_from([codec.encode() for codec in CODECS]) | words("utf-8", "us-ascii", "x", "") | RUNS
WORDS = joined(
    words("=?"), _CHARSETS, words("?q?", "?b?", "?Q?", "?x?", "?", "*en?q?"), TEXT, words("?=", "?", "", "?= ")
)
_LABELS = words("a", "example", "xn--a", "xn--n3h", "ä", "a" * 63, "a" * 64, "-", "") | RUNS
_DOMAINS = several(joined(_LABELS, words(".", ".", "。"))) | words("sandbox.test", "example.org", "[192.0.2.1]", "[")
_LOCALS = words("a", "app", '"a b"', '"\\""', "a.b", ".a", "ä", '"') | RUNS
_COMMENTS = joined(words("("), TEXT | RUNS, words(")", "", "))"))
_NAMES = several(words("Name", '"A, B"', '"', "a.b") | WORDS | _COMMENTS | RUNS, 3)
_MAILBOXES = joined(_LOCALS, words("@", "@", " @ ", "@@"), _DOMAINS) | joined(
    _NAMES, words(" <", "<", "<@a.b,@c:", "<<"), _LOCALS, words("@"), _DOMAINS, words(">", ">", "")
)
_GROUPS = joined(_NAMES, words(":"), several(joined(_MAILBOXES, words(",", ", ")), 3), words(";", ""))
ADDRESSES = cut(several(joined(_MAILBOXES | _GROUPS | _COMMENTS | RUNS, words(",", ", ", "", ";", "\r\n ")), 5) | ROWS)
"""The value of a To field, more or less."""

_KINDS = words(
    "text/plain", "text/html", "multipart/mixed", "multipart/alternative", "multipart/report", "message/rfc822",
    "image/png", "application/octet-stream", "attachment", "inline", "a/b/c", "",
)  # fmt: skip
_PARAMETERS = words("charset", "name", "filename", "boundary", "method", "a", "report-type") | RUNS
_SECTIONS = words("", "", "*", "*0", "*1", "*0*", "*1*", "*99999999999", "*-1", "**") | RUNS
_VALUES = (
    TEXT | WORDS | _CHARSETS | joined(words('"'), TEXT, words('"', "")) | joined(_CHARSETS, words("''", "'en'"), TEXT)
)
_PAIRS = joined(words(";", "; ", " ;\r\n "), _PARAMETERS, _SECTIONS, words("=", "=", " = ", ""), _VALUES)
TYPES = joined(_KINDS, several(_PAIRS, 4))
"""The value of a Content-Type or Content-Disposition field."""

_STRUCTURED = st.one_of(
    joined(words("To", "Cc", "Reply-To", "Sender", "Resent-To"), words(": "), ADDRESSES),
    joined(words("Content-Type", "Content-Disposition"), words(": "), TYPES),
    joined(words("Content-Transfer-Encoding: "), words("base64", "quoted-printable", "8bit", "uuencode") | RUNS),
    joined(words("Content-ID", "Message-ID", "References", "In-Reply-To"), words(": "), words("<a@b>") | RUNS),
    joined(words("Subject", "X-OpenSend-Metadata-a", "Comments"), words(": "), WORDS | TEXT),
    joined(
        words("X-OpenSend-Tag", "X-OpenSend-Send-At", "Idempotency-Key"), words(": "), words("a=b", "in 1 hour") | RUNS
    ),
    joined(RUNS, words(":", ": ", ""), RUNS),
    joined(words("To: ", "Subject: ", "Content-Type: ", "Content-Disposition: "), ROWS),
)
_ENDS = words("\r\n", "\r\n", "\r\n", "\n", "")
FIELDS = several(joined(_STRUCTURED, _ENDS))
_HOSTILE_FROM = joined(words("From: "), ADDRESSES, _ENDS) | words("")
_FROM = words("From: app@sandbox.test\r\n") | words("From: App <app@sandbox.test>\r\n") | _HOSTILE_FROM


# ---------------------------------------------------------------------- messages

_HTML = several(
    words(
        '<a href="', "https://a.example/", '">', "<", ">", "</", "<!--", "-->", "<script>", "<body", "&amp;", "&#1", "'"
    )
    | RUNS,
    12,
)
_CONTENTS = TEXT | _HTML | ROWS | words("aGVsbG8=\r\n", "=41=\r\n", "=\r\n", "====") | RUNS
_LEAVES = joined(FIELDS, words("\r\n"), _CONTENTS)


def _multipart(parts: list[bytes], boundary: bytes, spelled: bytes, end: bytes, fields: bytes) -> bytes:
    kind = b"Content-Type: multipart/mixed; %b%b\r\n%b\r\n" % (spelled, boundary, fields)
    return kind + b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts) + b"--" + boundary + end


_BOUNDARIES = words("b", "bb", "b b", "=_1", "-", "") | RUNS
_SPELLED = words("boundary=", "boundary*=us-ascii''", 'boundary="', "boundary*0=", "Boundary = ")
_PARTS: Octets = st.recursive(
    _LEAVES,
    lambda inner: st.builds(
        _multipart, st.lists(inner, max_size=4), _BOUNDARIES, _SPELLED, words("--", "--\r\n", "", "-"), FIELDS
    ),
    max_leaves=8,
)


def _mutated(octets: bytes, changes: list[tuple[int, int, int, bytes]]) -> bytes:
    """Cut, repeat and put in, each at a place that is counted in thousandths."""
    for place, length, times, new in changes:
        at = len(octets) * place // 1_000
        octets = octets[:at] + new + octets[at : at + length] * times + octets[at + length :]
        octets = octets[:MOST_OCTETS]
    return octets


_CHANGES = st.lists(
    st.tuples(st.integers(0, 1_000), st.integers(0, 60), _TIMES, RUNS | WORDS | TYPES | FIELDS), max_size=4
)


def changed(seeds: list[bytes]) -> Octets:
    """One of these, spoiled in a few places."""
    return st.builds(_mutated, st.sampled_from(seeds), _CHANGES)


MESSAGES = cut(joined(_FROM, FIELDS, _PARTS) | changed(_GOLDEN) | changed(_SHAPES) | joined(_FROM, FIELDS, RUNS | ROWS))


# ---------------------------------------------------------------------- reports

_ESCAPES = joined(words("\\x{", "\\x"), words("d800", "110000", "41", "0", "") | RUNS, words("}", "}@example.net"))
_RECIPIENTS = joined(
    words("Final-Recipient: ", "Original-Recipient: "), words("rfc822;", "utf-8;", ""), ADDRESSES | _ESCAPES
)
_OF_REPORTS = st.one_of(
    _RECIPIENTS,
    joined(
        words("Original-Rcpt-To: ", "Feedback-Type: ", "User-Agent: ", "Last-Attempt-Date: "), words("abuse") | RUNS
    ),
    joined(words("Action: "), words("failed", "delayed", "delivered", "Failed (gone)") | RUNS),
    joined(words("Status: "), words("5.1.1", "4.0.0", "5.", "999.1.1", "\u0665.1.1") | RUNS),
    joined(words("Diagnostic-Code: smtp; "), words("550 5.1.1 no") | RUNS | ROWS),
)
_BEGINNINGS = joined(words("Action: failed\r\n"), _RECIPIENTS, _ENDS) | words("Feedback-Type: abuse\r\n", "")
"""Without them most groups would be left out."""
_GROUPS_OF_REPORTS = joined(_BEGINNINGS, several(joined(_OF_REPORTS, _ENDS), 3), words("\r\n", "\n", "\r\n \r\n", ""))
_KINDS_OF_REPORTS = words("message/delivery-status", "message/global-delivery-status", "message/feedback-report")
_PARTS_OF_REPORTS = joined(
    words("--b\r\nContent-Type: "), _KINDS_OF_REPORTS, words("\r\n\r\n") | joined(words("\r\n"), FIELDS, words("\r\n")),
    several(_GROUPS_OF_REPORTS, 4), words("\r\n"),
)  # fmt: skip
_WHOLE_REPORTS = joined(
    words("Content-Type: multipart/report; boundary=b\r\n"), words("\r\n") | joined(FIELDS, words("\r\n")),
    several(_PARTS_OF_REPORTS, 3),
)  # fmt: skip
_BOUNCES = [octets for octets in _GOLDEN if b"multipart/report" in octets]
REPORTS = cut(_WHOLE_REPORTS | changed(_BOUNCES) | joined(FIELDS, _WHOLE_REPORTS, MESSAGES))


# ---------------------------------------------------------------------- requests

_STRINGS = (TEXT | RUNS | ROWS | WORDS | ADDRESSES | TYPES).map(
    lambda octets: octets.decode("utf-8", "surrogateescape")
)
_VALUES_OF_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _STRINGS | st.sampled_from(["\ud800", "aGk="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_STRINGS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
_HONEST = (
    {
        "from": "App <app@sandbox.test>", "to": ["Name <to@example.net>", "b@example.net"], "cc": ["c@example.net"],
        "reply_to": "d@example.net", "subject": "Grüße", "body": "hi", "body_html": "<p>hi", "from_name": "App",
        "attachments": [{"filename": "ä.txt", "content_type": "text/plain; charset=utf-8", "data": "aGk="}],
        "headers": {"X-A": "b"}, "tags": {"a": "b"}, "metadata": {"a": 1}, "send_at": "in 1 hour",
    },
    {
        "from": "app@sandbox.test", "to": "to@example.net", "bcc": "e@example.net", "subject": "hi", "text": "hi",
        "html": "<p>hi", "attachments": [{"filename": "a.png", "content": [1, 2, 3], "content_id": "logo"}],
        "tags": [{"name": "a", "value": "b"}], "scheduled_at": "in 1 min",
    },
)  # fmt: skip
"""A request in each of the two dialects."""


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys, those within included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield value, key
        yield from _places(one)


def _spoiled(honest: object, changes: list[tuple[int, object]]) -> object:
    """Put other values into some places of a request."""
    request = deepcopy(honest)
    for number, value in changes:
        places = [*_places(request)]
        container, key = places[number % len(places)]
        container[key] = value
    return request


_GIBBERISH = several(words("[", "{", '"', ":", "1", ",", "]", "}", "\\u", "1e9", "-", "NaN") | RUNS | ROWS)


def json_like(honest: Sequence[object]) -> Octets:
    """One of these as JSON, with other values in some places, spoiled as text, or nothing of the kind."""
    changes = st.lists(st.tuples(st.integers(0, 40), _STRINGS | _VALUES_OF_JSON), max_size=2)
    asked = st.builds(_spoiled, st.sampled_from(honest), changes)
    written = st.builds(
        lambda asked, plain: json.dumps(asked, ensure_ascii=plain).encode("utf-8", "surrogatepass"),
        asked | _VALUES_OF_JSON,
        st.booleans(),
    )
    whole = asked.map(lambda request: json.dumps(request).encode())
    return cut(whole | written | st.builds(_mutated, written, _CHANGES) | _GIBBERISH)


BODIES = json_like(_HONEST)


# ---------------------------------------------------------------------- the milter protocol

KEY = "0198c5a2-7f00-7abc-8def-0123456789ab"
"""The id of the key that is logged in."""


def _packet(command: bytes, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload) + 1) + command + payload


def _whole(octets: bytes) -> bytes:
    """Hand a message over as Postfix does."""
    head, _, body = octets.partition(b"\r\n\r\n")
    lines = head.replace(b"\0", b"").replace(b"\r\n ", b"\n ").split(b"\r\n")
    return b"".join([
        _packet(b"D", b"M{auth_authen}\0" + KEY.encode() + b"\0{client_addr}\x00192.0.2.7\0"),
        _packet(b"M", b"<app@sandbox.test>\0"),
        _packet(b"R", b"<to@example.net>\0"),
        *(_packet(b"L", line.replace(b":", b"\0", 1) + b"\0") for line in lines if b":" in line),
        *(_packet(b"B", body[at : at + 65_535]) for at in range(0, len(body), 65_535)),
        _packet(b"D", b"Ei\0004XQUEUE\0"),
        _packet(b"E", b""),
    ])  # fmt: skip


_MACROS = several(
    joined(words("{auth_authen}", "{client_addr}", "{tls_version}", "i", "x") | RUNS, words("\0"), RUNS, words("\0")), 3
)
_ARGUMENTS = joined(words("<"), ADDRESSES, words(">", ""), words("\0", "\0SIZE=1\0", "")) | RUNS
_PACKETS = st.one_of(
    st.builds(_packet, st.just(b"D"), joined(words("C", "H", "M", "R", "T", "L", "N", "E", "x", ""), _MACROS)),
    st.builds(_packet, words("M", "R"), _ARGUMENTS),
    st.builds(_packet, st.just(b"L"), joined(RUNS, words("\0", ""), ADDRESSES | TYPES | WORDS, words("\0", ""))),
    st.builds(_packet, st.just(b"B"), TEXT),
    st.builds(_packet, words("N", "E", "A", "T", "Q", "K"), words("", "x")),
    st.builds(_packet, words("C", "H", "U", "O", "z", "\0"), RUNS),
)
_SPOILED = st.builds(lambda packet, length: length + packet[4:], _PACKETS, st.binary(min_size=4, max_size=4))
CONVERSATIONS = several(MESSAGES.map(_whole) | several(_PACKETS, 8) | _SPOILED, 4)
"""All that Postfix might say after the negotiation."""
