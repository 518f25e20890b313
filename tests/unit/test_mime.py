"""The fields of a part are read as the standard library reads them; what is usual, as what is strict does."""

from __future__ import annotations

import re
from email.message import Message as StandardLibrary
from email.utils import collapse_rfc2231_value

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from opensend_milter.core import address, mime
from opensend_milter.core.budget import Budget
from opensend_milter.core.mime import LONGEST_VALUE, PartHeader, part_header
from opensend_milter.core.model import Address, Mailbox

PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("éß\u4e2d")
NAMES = st.text("abXY019_.-", min_size=1, max_size=6)
QUOTED = st.text(PRINTABLE).map(lambda text: '"' + re.sub(r'["\\]', "", text) + '"')
BARE = st.text(PRINTABLE, min_size=1).map(lambda text: re.sub(r"""[\s;"'*%]""", "", text)).filter(bool)
SPACE = st.text(" \t", max_size=2)
WORDS = st.sampled_from(["text/plain", "Multipart/Mixed", "attachment", "x", "a/b/c", "image/svg+xml", "(c)", "é/é"])
PARAMETERS = st.tuples(SPACE, SPACE, NAMES, QUOTED | BARE).map(lambda found: "{}; {}{}={}".format(*found))
SIMPLE = st.tuples(SPACE, WORDS, st.lists(PARAMETERS, max_size=4).map("".join), st.sampled_from(["", ";", " ; "])).map(
    "".join
)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def header(content_type: str = "", **fields: str) -> PartHeader:
    found = {"content_type": content_type, **fields}
    return part_header([(name.replace("_", "-"), value) for name, value in found.items() if value], Budget.of(100_000))


def by_the_library(value: str) -> tuple[str, dict[str, str]]:
    """Ask the standard library."""
    lent = StandardLibrary()
    lent["content-type"] = value
    (word, _), *pairs = lent.get_params(failobj=[("", "")])
    found: dict[str, str] = {}
    for name, text in pairs:
        found.setdefault(name.lower(), text if isinstance(text, str) else collapse_rfc2231_value(text))
    found.pop("", None)  # what it sees behind a last semicolon
    return word.strip().lower(), found


@unhurried
@given(SIMPLE)
def test_a_simple_field_is_read_as_the_standard_library_reads_it(value: str) -> None:
    word, parameters, _ = mime._parse(value)
    # Of `<x>` the library leaves `x`, as if it were an address.
    assume(not any(text.startswith("<") and text.endswith(">") for text in parameters.values()))
    assert (word, dict(parameters)) == by_the_library(value)


@pytest.mark.parametrize(
    "value",
    [
        "text/plain; charset",
        "text/plain; charset = utf-8",
        "text/plain; =x",
        "text/plain; name*=utf-8''caf%C3%A9.txt",
        "text/plain; name*=iso-8859-1'fr'caf%E9.txt",
        "text/plain; name*0=a; name*1=b",
        "text/plain; name*1=b; name*0=a",
        "text/plain; name*0*=utf-8''%C3; name*1*=%A9; name*2=.txt",
        "text/plain; name*0=it's; name*1*=%20me",
        "text/plain; x*=b; x=a",
        "text/plain; charset*=utf-8''utf-8; charset=us-ascii",
        "text/plain; name=it's",
        "text/plain; name=100%",
        r'text/plain; name="a\"b"',
        r'text/plain; name="a\\b"',
        r'text/plain; name="C:\temp\x.txt"',
        r'text/plain; name="a\";b"; charset=x',
        'text/plain; name="open',
        'text/plain; name="open; charset=x',
        'text/plain; name="a"b',
        'text/plain; name="a;b"; charset=x',
        "text/plain; name=",
        "text/plain;; name=x",
        "text plain; name=x",
        "*",
        "=",
        ";",
        '"text/plain"',
    ],
)
def test_any_other_field_is_read_as_the_standard_library_reads_it(value: str) -> None:
    word, parameters, _ = mime._parse(value)
    assert (word, dict(parameters)) == by_the_library(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a/b; name*0=a; name*=b", "ab"),
        ("a/b; name*=b; name=a", "b"),
        ("a/b; name=a; name*=b", "b"),
        ("a/b; name=a; name*0=b; name*1=c", "bc"),
        ("a/b; name*99999999999999999999=a", None),
        ("a/b; name*=no-such-charset''caf%C3%A9", "café"),
        ("a/b; name*=caf%C3%A9", "café"),
        ("a/b; name*=punycode''caf%C3%A9", "café"),
        ("a/b; name*=utf-7''+2AA-", "\ufffd"),
        ("a/b; name*0*=utf-8''%C3; name*1=x; name*2*=%A9", "\ufffdx\ufffd"),
    ],
)
def test_what_the_standard_library_stumbles_over(value: str, name: str | None) -> None:
    assert header(value).parameters.get("name") == name


@pytest.mark.case(40)
@pytest.mark.parametrize(
    "value",
    [
        'multipart/mixed; boundary="<b>"',
        "multipart/mixed; boundary=<b>",
        "multipart/mixed; boundary=\"<b>\"; x*=utf-8''y",
        r'multipart/mixed; boundary="<b>"; x="\""',
    ],
)
def test_a_boundary_is_the_same_whatever_stands_beside_it(value: str) -> None:
    assert header(value).boundary == "<b>"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("Text/HTML; charset=x", "text/html"),
        ("", "text/plain"),
        ("text", "text/plain"),
        ("a/b/c", "text/plain"),
        ("; charset=x", "text/plain"),
        ("IMAGE/png;", "image/png"),
    ],
)
def test_the_kind_of_a_part(value: str, kind: str) -> None:
    assert header(value).kind == kind


def test_of_repeated_fields_and_parameters_the_first_counts() -> None:
    found = part_header([
        ("subject", "content-type"),
        ("content-type", "image/png; name=a; NAME=b"),
        ("content-type", "text/html"),
        ("content-transfer-encoding", " BASE64 "),
        ("content-disposition", "Attachment; filename=c; filename=d"),
        ("content-id", " <1@x> "),
    ], Budget.of(1_000))  # fmt: skip
    assert (found.kind, found.parameters["name"], found.encoding) == ("image/png", "a", "base64")
    assert (found.disposition, found.filename, found.content_id) == ("attachment", "c", "1@x")
    assert found.boundary == "", "only a multipart has one"


def test_a_file_name_may_stand_in_either_field() -> None:
    assert header("image/png; name=a").filename == "a"
    assert header("image/png; name=a", content_disposition="inline; filename=b").filename == "b"
    assert header("image/png; name=a", content_disposition='inline; filename=""').filename == "a"
    assert header("image/png").filename == ""


@pytest.mark.case(42)
def test_a_field_beyond_the_limit_is_not_there() -> None:
    long = "image/png; name=" + "x" * LONGEST_VALUE
    assert header(long).kind == "text/plain"
    assert header(long[:LONGEST_VALUE]).kind == "image/png"


def test_what_is_remembered_cannot_be_changed() -> None:
    found = header("image/png; name=a").parameters
    with pytest.raises(TypeError):
        found["name"] = "b"  # type: ignore[index]  # that is the point
    assert header("image/png; name=a").filename == "a"


# ---------------------------------------------------------------------- addresses


@unhurried
@given(st.lists(st.from_regex(address._USUAL, fullmatch=True), min_size=1, max_size=3), st.integers(1, 3))
def test_usual_addresses_are_read_as_the_strict_reader_reads_them(values: list[str], at_most: int) -> None:
    value = ",".join(values)
    for plain in (True, False):
        strictly = address._Reader(value, at_most, Budget.of(len(value)), plain=plain).read()
        if len(values) > at_most:
            with pytest.raises(address.NotAnAddressListError, match="more than"):
                address.parse_addresses(value, at_most=at_most, plain=plain)
        else:
            assert address.parse_addresses(value, at_most=at_most, plain=plain) == tuple(strictly)


@unhurried
@given(st.from_regex(address._USUAL_ADDRESS, fullmatch=True).filter(lambda text: len(text) <= 320))
def test_a_usual_recipient_is_as_it_came(value: str) -> None:
    local, _, domain = value.rpartition("@")
    match = address._MAILBOX.fullmatch(value)
    assert match
    assert match.groups() == (local, None, domain)
    assert address.envelope_address(f"<{value}>") == address.mapped(Address(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            " Jane Doe 3 <jane.doe+x@mail-1.example.org> ",
            Mailbox("Jane Doe 3", Address("jane.doe+x@mail-1.example.org")),
        ),
        ("jane@example.org", Mailbox("", Address("jane@example.org"))),
        ("<jane@example.org>", Mailbox("", Address("jane@example.org"))),
    ],
)
def test_what_almost_every_from_is(value: str, expected: Mailbox) -> None:
    assert address._USUAL.fullmatch(value)
    assert address.parse_addresses(value, at_most=1) == (expected,)


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "value",
    [
        "Jane  Doe <a@example.org>",
        "Jane<a@example.org>",
        "Jane <a@example.org>, b@example.org",
        "Jane <a@b@example.org>",
        "Jane <a@example.org.>",
        "Jane <.a@example.org>",
        "Jane <a@exa mple.org>",
        "Jane. Doe <a@example.org>",
        "=?utf-8?q?x?= <a@example.org>",
        "a@example.org\n",
        "Jane (x) <a@example.org>",
        "J\u00fcrgen <a@example.org>",
        "a\u0661@example.org",
    ],
)
def test_what_is_not_usual_is_left_to_the_strict_reader(value: str) -> None:
    assert not address._USUAL.fullmatch(value)
