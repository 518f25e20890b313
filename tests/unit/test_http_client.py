"""Who asks: secrets and addresses, as honest and dishonest clients send them."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from opensend_milter.servers.web.caller import client_address, secret_of


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({"Authorization": "Bearer os_1"}, "os_1"),
        ({"Authorization": "bearer  os_1 "}, "os_1"),
        ({"Authorization": "BEARER os_1"}, "os_1"),
        ({"X-API-Key": " os_1 "}, "os_1"),
        ({"Authorization": "Bearer os_1", "X-API-Key": "os_2"}, "os_1"),
        ({"Authorization": "Basic b3M6MQ==", "X-API-Key": "os_2"}, None),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": ""}, None),
        ({"X-API-Key": ""}, None),
        ({"X-API-Key": "x" * 1_001}, None),
        ({}, None),
    ],
)
def test_the_secret(headers: dict[str, str], secret: str | None) -> None:
    """The scheme in any case; another scheme is no reason to look elsewhere."""
    assert secret_of(Headers(headers)) == secret


def request(peer: str, *values: str, name: str = "x-forwarded-for") -> Request:
    headers = [(name.encode(), value.encode()) for value in values]
    return Request({"type": "http", "client": (peer, 4711), "headers": headers})


PROXIES = ("10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "values", "address"),
    [
        ("192.0.2.1", (), "192.0.2.1"),
        ("192.0.2.1", ("203.0.113.9",), "192.0.2.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("203.0.113.9",), "203.0.113.9"),
        ("10.0.0.1", ("1.1.1.1, 203.0.113.9",), "203.0.113.9"),
        ("10.0.0.1", ("1.1.1.1", "203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", ("203.0.113.9, 10.1.1.1, 10.2.2.2",), "203.0.113.9"),
        ("10.0.0.1", ("10.9.9.9, 10.1.1.1",), "10.9.9.9"),
        ("10.0.0.1", ("203.0.113.9, nonsense, 10.1.1.1",), "10.1.1.1"),
        ("10.0.0.1", ("nonsense",), "10.0.0.1"),
        ("10.0.0.1", ("203.0.113.9:4711",), "203.0.113.9"),
        ("10.0.0.1", ("[2001:db8:1::5]:4711, 10.1.1.1",), "2001:db8:1::5"),
        ("::ffff:10.0.0.1", ("::ffff:203.0.113.9",), "203.0.113.9"),
        ("2001:db8::1", ("2a00::7",), "2a00::7"),
    ],
)
def test_the_address_behind_proxies(peer: str, values: tuple[str, ...], address: str) -> None:
    """From right to left, past those that are trusted: what stands further left anybody can write."""
    assert client_address(request(peer, *values), PROXIES, "x-forwarded-for") == address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('for="[2a00::7]:443";proto=https', "2a00::7"),
        ("for=1.1.1.1, for=203.0.113.9;by=10.0.0.1", "203.0.113.9"),
        ("proto=https;For=203.0.113.9", "203.0.113.9"),
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown", "10.0.0.1"),
        ("by=203.0.113.9", "10.0.0.1"),
    ],
)
def test_forwarded(value: str, address: str) -> None:
    """RFC 7239."""
    assert client_address(request("10.0.0.1", value, name="forwarded"), PROXIES, "forwarded") == address


def test_only_the_configured_field_is_read() -> None:
    asked = request("10.0.0.1", "203.0.113.9", name="forwarded")
    assert client_address(asked, PROXIES, "x-forwarded-for") == "10.0.0.1"
