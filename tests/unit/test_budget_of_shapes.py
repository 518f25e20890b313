"""What a message costs to read is counted in steps: a hostile one ends at its budget, an honest one is far from it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from opensend_milter.core.budget import Budget
from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading, Refuse
from opensend_milter.core.rules import Rule
from tests.linear import lines_run
from tests.shapes import SHAPES, SMALL, Shape
from tests.unit.messages import texts

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.eml"))
SLIGHT = [shape for shape in SMALL if len(shape.octets()) < 100_000]
"""Counting lines takes many times as long as running them."""
LINES_A_STEP = 30
LINES_OF_ANY = 5_000
"""What a message of no size runs."""


@pytest.mark.case(73)
@pytest.mark.case(77)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_hostile_shape_is_read_within_its_budget_or_refused_for_good(shape: Shape) -> None:
    octets = shape.octets()
    budget = Budget.of(len(octets))
    found = read(octets, Limits(), budget)
    if isinstance(found, Refuse):
        assert 500 <= found.code < 600
    else:
        assert all(text.encode() or not text for text in texts(found))
    assert budget.used <= budget.steps or (isinstance(found, Refuse) and found.rule is Rule.BEYOND_LIMITS)


@pytest.mark.case(73)
@pytest.mark.parametrize("shape", SLIGHT, ids=lambda shape: shape.name)
def test_its_steps_are_all_that_is_done(shape: Shape) -> None:
    """A loop that nothing is paid for runs lines, and no steps."""
    octets = shape.octets()
    budget = Budget.of(len(octets))
    lines = lines_run(lambda: read(octets, Limits(), budget))
    assert lines <= LINES_A_STEP * budget.used + LINES_OF_ANY


def large_and_honest(head: Callable[[int], str]) -> bytes:
    """Write 40 MB in 1,000 parts: a text, a page, and files."""
    content = base64.encodebytes(bytes(range(256)) * 118).replace(b"\n", b"\r\n")
    parts = [
        b"Content-Type: text/plain; charset=utf-8\r\n\r\nHello\r\n",
        b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>Hello</p>\r\n",
        *(head(number).encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + content for number in range(996)),
    ]
    to = ",\r\n ".join(f"Somebody {number} <to{number}@example.net>" for number in range(1_000))
    return (
        f"From: App <app@example.org>\r\nTo: {to}\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/mixed; boundary="=_mixed"\r\n\r\n'
    ).encode() + b"".join([*(b"--=_mixed\r\n" + part + b"\r\n" for part in parts), b"--=_mixed--\r\n"])


@pytest.mark.case(73)
@pytest.mark.parametrize(
    "head",
    [
        lambda number: (
            f'Content-Type: application/pdf; name="Rechnung {number}.pdf"\r\n'
            f'Content-Disposition: attachment;\r\n filename="Rechnung {number}.pdf"; size=30976\r\n'
        ),
        lambda number: (
            f"Content-Type: image/png\r\nContent-ID: <{number}@example.org>\r\nContent-Disposition: inline;\r\n"
            f" filename*0*=utf-8''%E6%98%A5%E3%81%AE{'%E6%98%A5' * 10};\r\n filename*1*=%E6%98%A5{number}.png\r\n"
        ),
        lambda number: (
            "Content-Type: application/octet-stream;\r\n"
            f' name="=?utf-8?b?{base64.b64encode(f"Grüße aus Köln {number}.bin".encode()).decode()}?="\r\n'
        ),
    ],
    ids=["quoted names", "names by RFC 2231", "encoded words"],
)
def test_40_mb_in_1000_parts_use_less_than_a_fifth(head: Callable[[int], str]) -> None:
    octets = large_and_honest(head)
    assert 40_000_000 < len(octets) <= Limits().max_message_bytes
    budget = Budget.of(len(octets))
    found = read(octets, Limits(), budget)
    assert isinstance(found, Reading), found
    assert len(found.attachments) == 996
    assert budget.used < budget.steps / 5


@pytest.mark.case(73)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_no_golden_message_uses_a_fifth(path: Path) -> None:
    octets = path.read_bytes()
    budget = Budget.of(len(octets))
    assert isinstance(read(octets, Limits(), budget), Reading)
    assert budget.used < budget.steps / 5
