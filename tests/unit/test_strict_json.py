"""JSON that would take up many times its size is refused before it does; what is honest and large is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core import strict_json
from opensend_milter.core.fields import FieldError
from opensend_milter.core.request import RequestLimits, SendRequest, read_send
from opensend_milter.core.strict_json import MOST_VALUES, parse_json
from tests.linear import assert_linear

HOSTILE = {
    "objects": b"{},",
    "lists": b"[],",
    "lists of one": b"[0],",
    "objects of one": b'{"":0},',
    "strings": b'"ab",',
    "escaped quotes in strings": rb'"\"",',
    "backslashes in strings": rb'"\\",',
    "brackets in strings, and outside": b'"[[",[],',
    "large numbers": b"999,",
    "negative numbers": b"-9,",
    "fractions": b"1.5,",
    "words": b"null,",
    "octets, and one that is none": b"9," * 1_000 + b"256,",
    "lists too short to be files": b"[" + b"1," * 100 + b"1],",
}
"""What is repeated."""


def mail(**changes: object) -> bytes:
    """Spell a request of Resend's clients as JSON."""
    return json.dumps({"from": "a@example.org", "to": "b@example.net", "subject": "s", "text": "t"} | changes).encode()


@pytest.mark.parametrize("shape", HOSTILE.values(), ids=HOSTILE)
def test_more_values_than_any_request_has_are_refused(shape: bytes) -> None:
    """Whatever they are; as many as there may be are read."""
    times = MOST_VALUES // shape.count(b",") + 1
    told = f"the body holds more than {MOST_VALUES} values"
    assert parse_json(b"[" + shape * times + b"0]") == FieldError(field="", message=told, code="too_many")
    assert isinstance(parse_json(b"[" + shape * (times // 3) + b"0]"), list)


def test_many_keys_of_one_object_are_values_too() -> None:
    body = b"{" + b",".join(b'"%x":0' % number for number in range(MOST_VALUES + 1)) + b"}"
    found = parse_json(body)
    assert isinstance(found, FieldError)
    assert found.code == "too_many"


@pytest.mark.parametrize(
    "text", [",", "[]{}:", '"', "\\", '\\"', "\n", "é", "😀", '<p style="a:b;">[1,2,3],{"a":1}</p>\n', "NaN,"]
)
def test_what_stands_in_a_string_counts_for_nothing(text: str) -> None:
    """Five million characters of HTML are one value, though more than `MOST_VALUES` of them look like others."""
    html = text * (5_000_000 // len(text))
    for ascii_only in (True, False):
        assert parse_json(json.dumps({"html": html}, ensure_ascii=ascii_only).encode()) == {"html": html}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n    ", ": ")])
def test_a_large_file_may_be_a_list_of_octets(separators: tuple[str, str]) -> None:
    """As Resend's clients for Python and Node spell it."""
    content = bytes(range(256)) * 800
    listed: dict[str, object] = {"filename": "a", "content": [*content]}
    buffer: dict[str, object] = {"filename": "b", "content": {"type": "Buffer", "data": [*content]}}
    body = json.dumps(json.loads(mail(attachments=[listed, buffer])), separators=separators).encode()
    found = read_send(parse_json(body), "resend", RequestLimits())
    assert isinstance(found, SendRequest)
    assert [file.content for file in found.attachments] == [content, content]


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (b"", None),
        (b" \n ", None),
        (b",", "not JSON"),
        (b",,1", "not JSON"),
        (b",01", "not JSON"),
        (b",1 2", "not JSON"),
        (b",\x0b1", "not JSON"),
        (b",256", None),
        (b"," + b"9" * 5_000, "number that is too long"),
    ],
)
def test_a_list_of_numbers_is_read_as_strictly_as_ever(monkeypatch: pytest.MonkeyPatch, tail: bytes, said: str) -> None:
    """Also where it is read in pieces, and wherever a piece ends."""
    monkeypatch.setattr(strict_json, "MOST_VALUES", 1_000)
    for piece in range(390, 410):
        monkeypatch.setattr(strict_json, "_PIECE_OCTETS", piece)
        numbers = b"1," * 400 + b"255" + tail
        found = parse_json(b'{"a": ["NaN", [' + numbers + b"]], " + b" " * 1_000 + b'"b": [1]}')
        if said is None:
            assert isinstance(found, dict)
            assert [*found["a"][1]] == json.loads(b"[" + numbers + b"]")
            assert (found["a"][0], found["b"]) == ("NaN", [1])
        else:
            assert isinstance(found, FieldError)
            assert said in found.message


def test_no_word_of_a_stranger_stands_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a fault behind a file told of another place than it has."""
    monkeypatch.setattr(strict_json, "MOST_VALUES", 1_000)
    numbers = b"[" + b"1," * 999 + b"1]"
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        found = parse_json(b"[" + word + b"," + numbers + b"]")
        assert isinstance(found, FieldError)
        assert "is no number there" in found.message
    found = parse_json(b"[" + numbers + b", ?]")
    assert isinstance(found, FieldError)
    assert f"(line 1, column {len(numbers) + 4})" in found.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.booleans(), st.integers(0, 400))
def test_a_large_body_is_read_as_a_small_one_is(value: object, ascii_only: bool, octets: int) -> None:  # noqa: FBT001
    body = json.dumps([value, [7] * octets, value], ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    small = parse_json(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "MOST_VALUES", 1_000)
        large = parse_json(body.ljust(2_000))
    if isinstance(large, list) and isinstance(large[1], bytes):
        large[1] = [*large[1]]
    assert large == small


def test_the_work_grows_with_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MOST_VALUES", 10_000)

    def read(octets: int) -> None:
        for shape in HOSTILE.values():
            parse_json(b"[" + shape * (octets // len(shape)) + b"0]")
        parse_json(b"[" + b"1," * (octets // 2) + b"1]")

    assert_linear(read, 20_000)
