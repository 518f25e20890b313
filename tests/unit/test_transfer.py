"""Transfer encodings: read in pieces they say what they say as a whole, wherever the border falls."""

from __future__ import annotations

import base64
import binascii
import mmap
import re
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from opensend_milter.core import transfer
from opensend_milter.core.transfer import Base64, decoded, slices

BORDERS = [1, 2, 3, 4, 7, 56, 57, 58, 75, 76, 77, 78, 79, 100]
SIZES = [0, 1, 2, 3, 4, *range(54, 61), *range(74, 81), *range(112, 118), *range(150, 160), 1_000]
NOISE = st.lists(
    st.sampled_from([b"=", b"==", b"\r", b"\n", b"\r\n", b"=\r\n", b"=\n", b"= \r\n", b"=E9", b"=3", b"=3d", b".", b" ",
                     b"\t", b"\x00", b"\xff", b"A", b"ab", b"Zz9+/", b"a" * 76, b"_", b"-"]), max_size=60
).map(b"".join)  # fmt: skip

WRAPPED = re.compile(rb"(?:[A-Za-z0-9+/]{76}\r\n)*[A-Za-z0-9+/]{2,76}={0,2}")

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=BORDERS)
def border(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let pieces be as small as this."""
    monkeypatch.setattr(transfer, "PIECE_BYTES", request.param)
    return int(request.param)


def octets(size: int) -> bytes:
    return bytes(at * 7 % 256 for at in range(size))


def wrapped(content: bytes) -> bytes:
    """Write it as OpenSend's row has it."""
    return base64.encodebytes(content).replace(b"\n", b"\r\n")


def encoded(content: bytes, encoding: str) -> bytes:
    match encoding:
        case "base64":
            return wrapped(content)
        case "quoted-printable":
            return binascii.b2a_qp(content)
        case _:
            return content


def whole(raw: bytes, encoding: str) -> bytes:
    """Undo an encoding in one go."""
    match encoding:
        case "base64":
            letters = re.sub(rb"[^A-Za-z0-9+/]", b"", raw)
            rest = len(letters) % 4
            return binascii.a2b_base64(letters[:-1] if rest == 1 else letters + b"=" * (-len(letters) % 4))
        case "quoted-printable":
            return binascii.a2b_qp(raw)
        case _:
            return raw


def joined(raw: bytes, encoding: str) -> bytes:
    around = b"--b\r\n" + raw + b"\r\n--b--"
    return b"".join(decoded(around, 5, 5 + len(raw), encoding))


def assert_rows(content: Base64) -> bytes:
    """Look at what goes into the row; return it."""
    written = b"".join(content.pieces())
    lines = written.split(b"\r\n")
    assert lines.pop() == b"", "each line is ended"
    assert {len(line) for line in lines[:-1]} <= {76}
    assert not lines or 1 <= len(lines[-1]) <= 76
    assert b"\r" not in written.replace(b"\r\n", b"")
    assert content.letters == sum(map(len, lines))
    return written


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit", "", "x-unknown"])
@pytest.mark.usefixtures("border")
def test_pieces_are_the_whole(encoding: str) -> None:
    for size in SIZES:
        raw = encoded(octets(size), encoding)
        assert joined(raw, encoding) == whole(raw, encoding)
        if encoding == "base64":
            assert joined(raw, encoding) == octets(size)


@pytest.mark.case(41)
@unhurried
@given(raw=NOISE, size=st.sampled_from(BORDERS), encoding=st.sampled_from(["base64", "quoted-printable"]))
def test_pieces_of_what_is_broken_are_the_whole(raw: bytes, size: int, encoding: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PIECE_BYTES", size)
        assert joined(raw, encoding) == whole(raw, encoding)


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
@pytest.mark.usefixtures("border")
def test_what_is_written_is_wrapped_base64_of_what_was_sent(encoding: str) -> None:
    for size in SIZES:
        content = octets(size)
        raw = base64.b64encode(content) if encoding == "base64" else encoded(content, encoding)
        around = b"--b\r\n" + raw + b"\r\n--b--"
        assert assert_rows(Base64.of(around, 5, 5 + len(raw), encoding)) == wrapped(whole(raw, encoding))


@pytest.mark.usefixtures("border")
def test_what_is_wrapped_already_is_taken_over() -> None:
    for size in SIZES[1:]:
        raw = wrapped(octets(size))
        for sent in (raw, raw.removesuffix(b"\r\n"), raw + b"\r\n\r\n", raw.removesuffix(b"\r\n") + b"\n"):
            around = b"AAAA\r\n\r\n" + sent + b"AAAA"
            content = Base64.of(around, 8, 8 + len(sent), "base64")
            assert content.as_sent
            assert assert_rows(content) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"A",
        b"AAA",
        b"AAAAA===",
        b"A===",
        b"====",
        b"AAAA\nAAAA",
        b"AAAA\r\nAAAA",
        b" AAAA",
        b"AAAA ",
        b"\r\nAAAA",
        b"A" * 77,
        b"A" * 78,
        b"A" * 76 + b"==",
        b"A" * 80,
        b"A" * 76 + b"\n" + b"A" * 4,
        b"A" * 75 + b"\r\n" + b"A" * 4,
        b"A" * 76 + b"\r\n" + b"A" * 80,
        b"A" * 76 + b"\r\n\r\n" + b"A" * 4,
        b"A" * 74 + b"==\r\n" + b"A" * 4,
        b"AA=A",
        b"AA!A",
        b"AA__",
    ],
)
def test_what_is_wrapped_otherwise_is_written_anew(raw: bytes) -> None:
    content = Base64.of(raw, 0, len(raw), "base64")
    assert not content.as_sent
    assert assert_rows(content) == wrapped(whole(raw, "base64"))


def test_only_base64_is_taken_over() -> None:
    assert not Base64.of(b"AAAA", 0, 4, "7bit").as_sent
    assert assert_rows(Base64.of(b"AAAA", 0, 4, "7bit")) == wrapped(b"AAAA")


@unhurried
@given(st.from_regex(WRAPPED, fullmatch=True) | NOISE)
def test_what_is_taken_over_is_good_base64(raw: bytes) -> None:
    content = Base64.of(raw, 0, len(raw), "base64")
    written = assert_rows(content)
    assert base64.b64decode(written.replace(b"\r\n", b""), validate=True) == whole(raw, "base64")


SOUND = b"A1b/" * 19 + b"\r\n"
FLAWED = [
    SOUND.replace(b"/", b"_"), SOUND.replace(b"\r\n", b"\n"), SOUND.replace(b"\r\n", b"\r\r"), SOUND[4:], b"A" + SOUND,
    SOUND[:75] + b"=\r\n", SOUND[:75] + b"\x00\r\n",
]  # fmt: skip


@pytest.mark.parametrize("lines", [0, 1, 839, 840, 841, 1_680, 1_681])
@pytest.mark.parametrize("flaw", [b"", *FLAWED])
def test_one_line_among_many_is_not_overlooked(lines: int, flaw: bytes) -> None:
    """However many are looked at together, and wherever it stands."""
    for at in {0, lines // 2, lines}:
        raw = b"xyz" + SOUND * at + flaw + SOUND * (lines - at) + b"AAAA"
        assert transfer._is_wrapped(raw, 3, len(raw)) == (WRAPPED.fullmatch(raw, 3) is not None) == (not flaw)


@pytest.fixture
def mapped() -> Iterator[mmap.mmap]:
    """Hold a part of a spooled message, a few pages of it."""
    with tempfile.TemporaryFile() as spool:
        spool.write(b"head\r\n" + wrapped(octets(9_000)) + b"tail")
        spool.flush()
        with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as found:
            yield found


@pytest.mark.usefixtures("border")
def test_a_mapped_message_reads_like_bytes(mapped: mmap.mmap) -> None:
    raw, start, end = bytes(mapped[:]), 6, len(mapped) - 4
    assert b"".join(slices(mapped, 1, end)) == raw[1:end]
    for encoding in ("base64", "8bit"):
        content = Base64.of(mapped, start, end, encoding)
        assert content.as_sent == (encoding == "base64")
        assert b"".join(content.pieces()) == b"".join(Base64.of(raw, start, end, encoding).pieces())
        assert content.letters == Base64.of(raw, start, end, encoding).letters


def test_no_piece_is_larger_than_asked(border: int) -> None:
    raw = octets(1_000)
    found = list(slices(raw, 3, 997))
    assert b"".join(found) == raw[3:997]
    assert {len(piece) for piece in found[:-1]} <= {border}
    assert list(slices(raw, 5, 5)) == []


@pytest.mark.case(74)
def test_a_line_without_end_is_not_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 100_000)
    raw = b"=C3=A9 " * 100_000
    pieces = list(decoded(raw, 0, len(raw), "quoted-printable"))
    assert max(map(len, pieces)) <= 100_000
    assert b"".join(pieces) == "é ".encode() * 100_000


def test_line_ends_without_end_are_no_lines() -> None:
    raw = wrapped(octets(200)) + b"\r\n" * 1_000
    found = Base64.of(raw, 0, len(raw), "base64")
    assert not found.as_sent
    assert b"".join(found.pieces()) == wrapped(octets(200))
