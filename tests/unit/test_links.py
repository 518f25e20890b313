"""Links say what they were made to say; what is not ours, or leads where no browser is to be sent, says nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.links import (
    LONGEST_URL_OCTETS,
    PATHS,
    LinkKind,
    Links,
    SignedLink,
    is_one_address,
    is_web_url,
    location,
)
from opensend_milter.core.model import EmailId, Route
from opensend_milter.core.signing import derived, link_token

ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
KEY = derived(bytes(32), "link")
LINKS = Links(key=KEY, public_url="https://mail.example.com/")
BASE = "https://t.example"


def token_of(link: SignedLink) -> str:
    url = LINKS.url(BASE, link)
    assert url.startswith(BASE + PATHS[link.kind])
    return url.removeprefix(BASE + PATHS[link.kind])


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("open", ""),
        ("click", "https://example.org/?a=1&b=ü#c"),
        ("unsubscribe", "to@example.net"),
        ("unsubscribe", "ü@bücher.example"),
    ],
)
def test_a_link_says_what_it_was_made_to_say_the_same_each_time(kind: LinkKind, target: str) -> None:
    link = SignedLink(kind=kind, email_id=ID, target=target)
    assert LINKS.opened(token_of(link)) == link
    assert token_of(link) == token_of(link)


@given(st.from_regex(r"https?://[a-z]{1,9}\.example/[ -\[\]-~¡-퟿]{0,200}", fullmatch=True).filter(is_web_url))
def test_any_url_comes_back(url: str) -> None:
    assert LINKS.opened(token_of(SignedLink(kind="click", email_id=ID, target=url))) == SignedLink(
        kind="click", email_id=ID, target=url
    )
    assert location(url).isascii()
    assert location(url).isprintable()
    assert " " not in location(url)
    assert location(location(url)) == location(url)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"o1",
        b"c",
        b"x",
        b"cjavascript:alert(1)",
        b"c//evil.example",
        b"chttp://x/\r\nSet-Cookie: a=b",
        b"chttp://x/\x00",
        b"c\xff",
        b"u",
        b"uno address",
        b"ua@b\r\nBcc: x@y",
    ],
)
def test_what_was_never_to_be_said_is_not_understood_even_if_signed(said: bytes) -> None:
    assert LINKS.opened(link_token(KEY, ID, said)) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a@b", True),
        ("@@b", True),
        ('"a@b"@x.example', True),
        ("ü@bücher.example", True),
        ("@b", False),
        ("a@", False),
        ("a", False),
        ("a b@x", False),
        ("a@x\n", False),
    ],
)
def test_what_could_be_a_recipients_address(address: str, expected: bool) -> None:  # noqa: FBT001
    assert is_one_address(address) is expected


def test_a_link_of_another_secret_or_changed_is_not_understood() -> None:
    token = token_of(SignedLink(kind="click", email_id=ID, target="https://example.org/"))
    assert Links(key=derived(bytes([1]) * 32, "link")).opened(token) is None
    assert LINKS.opened(token[:-1] + ("A" if token[-1] != "A" else "E")) is None
    for strange in ("", "x", token[:-2], token + "AAAA", "é", "/" * 100):
        assert LINKS.opened(strange) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://x", True),
        ("HTTPS://EXAMPLE.ORG:8443/a b?c=ü#d", True),
        ("https://user:pw@[2001:db8::1]/", True),
        ("https://x?y", True),
        ("http://x/" + "y" * (LONGEST_URL_OCTETS - 9), True),
        ("http://x/" + "y" * (LONGEST_URL_OCTETS - 8), False),
        ("http://x/" + "ü" * (LONGEST_URL_OCTETS // 2), False),
        ("http://", False),
        ("http:///x", False),
        ("http:x", False),
        ("//x", False),
        ("ftp://x", False),
        ("javascript://x/%0aalert(1)", False),
        ("http://bücher.example/", False),
        ("http://x\\@y/", False),
        ("http://x/\\y", False),
        ("http://x/\ny", False),
        ("http://x/\ry", False),
        ("http://x/\x7f", False),
        ("http://x/\x85", False),
        ("http://x/\udce9", False),
        (" http://x/", False),
        ("http://x/\n", False),
        ("", False),
    ],
)
def test_where_a_browser_may_be_sent(url: str, expected: bool) -> None:  # noqa: FBT001
    assert is_web_url(url) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x/?a=1&b=%20;c|{d}#e'f", "https://x/?a=1&b=%20;c|{d}#e'f"),
        ('https://x/a b"<ü>', "https://x/a%20b%22%3C%C3%BC%3E"),
    ],
)
def test_location_spells_a_url_as_browsers_do(url: str, expected: str) -> None:
    assert location(url) == expected


@pytest.mark.parametrize(
    ("host", "public_url", "expected"),
    [
        ("Links.Example.org", "https://mail.example.com", "https://links.example.org"),
        ("links.bücher.example", "", "https://links.xn--bcher-kva.example"),
        ("", "https://mail.example.com/", "https://mail.example.com"),
        ("", "http://127.0.0.1:8025/mail/", "http://127.0.0.1:8025/mail"),
        ("", "http://[::1]:8025", "http://[::1]:8025"),
        ("", "", ""),
        ("", 'https://x"><script>', ""),
        ("", "https://x\r\nBcc: y", ""),
        ("links", "https://mail.example.com", ""),
        ("https://links.example.org", "https://mail.example.com", ""),
        ('x.example"><script>', "https://mail.example.com", ""),
        ("x.example\r\nBcc: y", "https://mail.example.com", ""),
    ],
)
def test_what_links_begin_with(host: str, public_url: str, expected: str) -> None:
    """The domain's host, else ours; a host that is none is not replaced by ours."""
    assert Links(key=KEY, public_url=public_url).base(Route(tracking_host=host)) == expected
