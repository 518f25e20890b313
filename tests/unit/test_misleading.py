"""From is what a reader sees: no other address and no line end hides in it."""

from __future__ import annotations

import pytest

from opensend_milter.core.address import parse_addresses
from opensend_milter.core.message import read
from opensend_milter.core.misleading import misleading
from opensend_milter.core.model import Limits, Reading, Refuse
from opensend_milter.core.rules import Rule
from tests.linear import assert_linear


@pytest.mark.case(24)
@pytest.mark.case(27)
@pytest.mark.case(77)
@pytest.mark.parametrize(
    "shown",
    [
        "=?utf-8?q?evil=40bank.example=3e?=@sandbox.test",
        "<=?utf-8?q?evil?=@sandbox.test>",
        "=?utf-8?b?ZXZpbA==?=@sandbox.test",
        '"=?utf-8?q?evil?="@sandbox.test',
        "x.=?utf-8?q?evil=40bank.example?=@sandbox.test",
        "=?utf-8?q?a=0D=0ABcc=3A_x?= <app@sandbox.test>",
        "=?utf-8?q?a=0Ab?= <app@sandbox.test>",
        "=?utf-8?q?a=00b?= <app@sandbox.test>",
        "=?utf-8?q?a=E2=80=A8b?= <app@sandbox.test>",
        "=?iso-2022-jp?b?Cg==?= <app@sandbox.test>",
        "app@sandbox.test (=?utf-8?q?a=0D=0Ab?=)",
        "=?utf-8?q?ceo=40bank.example?= <app@sandbox.test>",
        "=?utf-8?q?=22ceo=40bank.example=22?= <app@sandbox.test>",
        "=?utf-8?q?=3Cceo=40bank.example=3E?= <app@sandbox.test>",
        "=?utf-8?q?CEO,_ceo=40bank.example.?= <app@sandbox.test>",
        "=?utf-8?q?ceo=40?= =?utf-8?q?bank.example?= <app@sandbox.test>",
        "=?utf-8?q?ceo=40?= =?us-ascii?q?bank.example?= <app@sandbox.test>",
        "=?utf-8?q?ceo=EF=BC=A0bank.example?= <app@sandbox.test>",
        "=?utf-8?q?ceo=40bank=E3=80=82example?= <app@sandbox.test>",
        '"ceo=?utf-8?q?=40?=bank.example" <app@sandbox.test>',
        "app@sandbox.test (=?utf-8?q?ceo=40bank.example?=)",
        "=?utf-8?q?ceo=40bank.example=3E_?= <app@sandbox.test> (app@sandbox.test)",
        '<"admin@bank.example> "@sandbox.test>',
        '"admin@bank.example"@sandbox.test',
        '"a\\@b"@sandbox.test',
        '"a<b"@sandbox.test',
        '"a>b"@sandbox.test',
        "evil＠bank.example@sandbox.test",
        "evil﹥@sandbox.test",
    ],
)
def test_what_a_reader_may_take_for_another_address_is_refused(shown: str) -> None:
    found = read(f"From: {shown}\r\n\r\nhi\r\n".encode(), Limits())
    assert isinstance(found, Refuse)
    assert (found.code, found.enhanced, found.rule) == (550, "5.7.1", Rule.FROM_MALFORMED)
    assert found.text.isascii()


@pytest.mark.parametrize(
    ("shown", "name", "address"),
    [
        ("=?utf-8?q?J=C3=BCrgen?= <app@sandbox.test>", "Jürgen", "app@sandbox.test"),
        ("=?utf-8?q?M=C3=BCller=2C_J=C3=BCrgen?= <app@sandbox.test>", "Müller, Jürgen", "app@sandbox.test"),
        ("=?utf-8?q?Caf=C3=A9_=40_Berlin?= <app@sandbox.test>", "Café @ Berlin", "app@sandbox.test"),
        ("=?utf-8?q?J=C3=BCrgen_=28=40juergen=29?= <app@sandbox.test>", "Jürgen (@juergen)", "app@sandbox.test"),
        ("=?utf-8?q?App=40Sandbox.test?= <app@sandbox.test>", "App@Sandbox.test", "app@sandbox.test"),
        (
            "=?utf-8?q?J=C3=BC_=3Capp=40sandbox.test=3E?= <app@sandbox.test>",
            "Jü <app@sandbox.test>",
            "app@sandbox.test",
        ),
        ("=?utf-8?q?a=09b?= <app@sandbox.test>", "a b", "app@sandbox.test"),
        ("=?iso-8859-1?q?Joe=92s_shop?= <app@sandbox.test>", "Joe’s shop", "app@sandbox.test"),
        ("=?iso-8859-2?q?Joe=92s_shop?= <app@sandbox.test>", "Joe s shop", "app@sandbox.test"),
        ('"jane@example.org via App" <app@sandbox.test>', "jane@example.org via App", "app@sandbox.test"),
        ('"a b"@sandbox.test', "", '"a b"@sandbox.test'),
        ("a=?b@sandbox.test", "", "a=?b@sandbox.test"),
        ("jürgen@sandbox.test", "", "jürgen@sandbox.test"),
    ],
)
def test_what_is_shown_as_it_is_meant_is_taken(shown: str, name: str, address: str) -> None:
    found = read(f"From: {shown}\r\n\r\nhi\r\n".encode(), Limits())
    assert isinstance(found, Reading), found
    assert (found.sender.name, found.sender.address) == (name, address)


@pytest.mark.parametrize("part", ["=?utf-8?q?a=40b.c?= ", "a@b.c ", "@", "=?", "(", "a@"])
def test_a_long_field_takes_as_long_as_it_is(part: str) -> None:
    (sender,) = parse_addresses("app@sandbox.test", at_most=1)
    assert_linear(lambda size: misleading(f"=?utf-8?q?x?= {part * size}", sender.address), 100)
