"""What a domain asks for is added, and nothing else changes; what is signed or encrypted is not changed at all."""

from __future__ import annotations

import base64
import email
import email.policy
import re
from email.message import EmailMessage
from email.policy import SMTP
from html import unescape
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings, strategies as st

from opensend_milter.core.links import Links, SignedLink
from opensend_milter.core.model import Route
from opensend_milter.core.signing import derived
from opensend_milter.core.tracking import MOST_HTML_BYTES, MOST_LINKS, dress
from tests.jobs import job
from tests.linear import assert_linear

LINKS = Links(key=derived(bytes(32), "link"), public_url="https://mail.example.com")
BOTH = Route(track_opens=True, track_clicks=True)
OPENS, CLICKS, ONE_CLICK = Route(track_opens=True), Route(track_clicks=True), Route(one_click=True)
ALL = Route(track_opens=True, track_clicks=True, one_click=True)
HEAD = b"From: App <app@example.org>\r\nTo: to@example.net\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
HTML = b"Content-Type: text/html\r\n"
PAGE = '<html><body><a href="https://example.org/?a=1&amp;b=2">x</a></body></html>\r\n'
PIXEL = re.compile(
    r'<img src="https://mail\.example\.com/api/track/open/([\w-]+)" width="1" height="1" alt="" style="[^"]+">'
)
CLICK = re.compile(r"https://mail\.example\.com/api/track/click/([\w-]+)")


def dressed(content: bytes, route: Route = BOTH, **changes: Any) -> bytes:
    return dress(content, job(route=route, **changes), LINKS)


def page_of(content: bytes) -> str:
    """Return the HTML body as Python's reader decodes it."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    part = message.get_body(("html",))
    assert part is not None
    charset = str(part.get_content_charset("utf-8"))
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode(charset, "surrogateescape")


def target(token: str) -> SignedLink:
    link = LINKS.opened(token)
    assert link is not None
    assert link.email_id == job().email_id
    return link


def undressed(page: str) -> str:
    """Put back what was replaced."""
    return CLICK.sub(lambda found: target(found[1]).target.replace("&", "&amp;"), PIXEL.sub("", page))


def multipart(subtype: str, *parts: bytes, boundary: str = "b") -> bytes:
    """Return a multipart from its Content-Type on."""
    inner = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    head = f'Content-Type: multipart/{subtype}; boundary="{boundary}"\r\n\r\n'.encode()
    return head + inner + b"--" + boundary.encode() + b"--\r\n"


PAGE_PART = HTML + b"\r\n" + PAGE.encode()
TEXT_PART = b"Content-Type: text/plain\r\n\r\nhttps://example.org/\r\n"


def test_opens_and_clicks_of_a_page() -> None:
    found = dressed(HEAD + PAGE_PART).decode()
    click, pixel = CLICK.search(found), PIXEL.search(found)
    assert click
    assert pixel
    assert target(click[1]) == SignedLink(kind="click", email_id=job().email_id, target="https://example.org/?a=1&b=2")
    assert target(pixel[1]) == SignedLink(kind="open", email_id=job().email_id)
    assert found == (HEAD + PAGE_PART).decode().replace("https://example.org/?a=1&amp;b=2", click[0]).replace(
        "</body>", pixel[0] + "</body>"
    )


def test_each_attempt_sends_the_same_bytes() -> None:
    content = HEAD + PAGE_PART
    assert dressed(content, ALL) == dressed(content, ALL, attempts=3, lease_id="other")


@pytest.mark.parametrize(
    ("route", "pixels", "clicks", "fields"), [(Route(), 0, 0, 0), (OPENS, 1, 0, 0), (CLICKS, 0, 1, 0), (BOTH, 1, 1, 0),
                                              (ONE_CLICK, 0, 0, 2), (ALL, 1, 1, 2)],
)  # fmt: skip
def test_only_what_is_asked_for(route: Route, pixels: int, clicks: int, fields: int) -> None:
    found = dressed(HEAD + PAGE_PART, route).decode()
    assert (len(PIXEL.findall(found)), len(CLICK.findall(found))) == (pixels, clicks)
    assert found.count("List-Unsubscribe") == (fields and fields + 1)


def test_a_domains_own_host() -> None:
    route = Route(track_opens=True, track_clicks=True, one_click=True, tracking_host="links.example.org")
    found = dressed(HEAD + PAGE_PART, route)
    assert found.count(b"https://links.example.org/") == 3
    assert b"mail.example.com" not in found


@pytest.mark.parametrize("host", ["", "no host", "links"])
def test_without_a_base_nothing_is_added(host: str) -> None:
    route = Route(track_opens=True, track_clicks=True, one_click=True, tracking_host=host)
    assert dress(HEAD + PAGE_PART, job(route=route), Links(key=LINKS.key)) == HEAD + PAGE_PART


@pytest.mark.parametrize(
    "href",
    ["https://example.org/Unsubscribe?x", "https://example.org/?UNSUBSCRIBE", "https://x/&#117;nsubscribe",
     "mailto:a@example.org", "#top", "//example.org/", "javascript:alert(1)", "https://x/{{id}}", "{{url}}", "/x",
     f"https://example.org/{'x' * 2_000}", "https://b\u00fccher.example/"],
)  # fmt: skip
def test_these_links_stay(href: str) -> None:
    content = HEAD + HTML + f'\r\n<a href="{href}">x</a>'.encode()
    assert dressed(content, CLICKS) == content


BODY = "<body>gr\u00fc\u00df\u20ac <a href='https://example.org/\u00fc'>x</a>\r\n.\r\n \r\nFrom x \t\r\n</body>\r\n"


def encoded(octets: bytes, encoding: str) -> bytes:
    match encoding:
        case "base64":
            return base64.encodebytes(octets).replace(b"\n", b"\r\n")
        case "quoted-printable":
            return b"".join(
                b"=%02X" % octet if octet > 126 or octet == 61 else bytes([octet]) for octet in octets
            ).replace(b"\t\r\n", b"=09\r\n").replace(b" \r\n", b"=20\r\n")  # fmt: skip
        case _:
            return octets


@pytest.mark.parametrize("encoding", ["", "7bit", "8bit", "binary", "quoted-printable", "base64", "QUOTED-Printable"])
@pytest.mark.parametrize(
    "charset", ["", "utf-8", "UTF-8", "us-ascii", "iso-8859-15", "windows-1252", "koi8-r", "utf-16-le"]
)
def test_charset_and_transfer_encoding_stay(encoding: str, charset: str) -> None:
    octets = BODY.encode(charset or "utf-8", "replace")
    fields = f"Content-Type: text/html{f'; charset={charset}' if charset else ''}\r\n"
    fields += f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
    content = HEAD + fields.encode() + b"\r\n" + encoded(octets, encoding.lower())
    found = dressed(content)
    assert found.startswith(HEAD + fields.encode() + b"\r\n")
    assert found.endswith(b"\r\n") is content.endswith(b"\r\n")
    page = page_of(found)
    assert PIXEL.search(page)
    assert undressed(page) == octets.decode(charset or "utf-8")
    if encoding in {"base64", "quoted-printable"}:
        assert max(map(len, found.removeprefix(HEAD).split(b"\r\n"))) <= 76
        assert found.count(b"\n") == found.count(b"\r\n")


def test_octets_that_are_not_of_the_charset_stay() -> None:
    content = HEAD + HTML + b"\r\n\xff\xfe<a href='https://x/'>\x80</a>\r\n"
    found = dressed(content, CLICKS)
    assert found != content
    assert re.sub(rb"https://mail[^']+", b"https://x/", found) == content


@pytest.mark.parametrize(
    "field", [b"", b"Content-Transfer-Encoding: 7bit\r\n", b"CONTENT-transfer-encoding :\r\n 8bit\r\n"]
)
def test_a_line_that_would_be_too_long_makes_it_quoted_printable(field: bytes) -> None:
    url = "https://example.org/" + "x" * 900
    content = HEAD + field + HTML + f'\r\n<a href="{url}">x</a> =3D\r\n'.encode()
    found = dressed(content, CLICKS)
    assert found.lower().count(b"content-transfer-encoding: quoted-printable\r\n") == 1
    assert found.lower().count(b"content-transfer-encoding") == 1
    assert max(map(len, found.split(b"\r\n"))) <= 76
    assert undressed(page_of(found)) == f'<a href="{url}">x</a> =3D\r\n'


ATTACHED = (
    b'Content-Type: text/html; name="a.html"\r\nContent-Disposition: attachment; filename="a.html"\r\n\r\n'
    + PAGE.encode()
)
INLINE_NAMED = b'Content-Type: text/html; name="a.html"\r\n\r\n' + PAGE.encode()
FORWARDED = b"Content-Type: message/rfc822\r\n\r\nFrom: a@example.org\r\n" + PAGE_PART
IMAGE = b"Content-Type: image/png\r\nContent-ID: <1@x>\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0KGgo=\r\n"

NESTED = multipart("alternative", TEXT_PART, PAGE_PART, boundary="bc")


@pytest.mark.case(46)
@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (multipart("alternative", TEXT_PART, PAGE_PART), 1),
        (multipart("mixed", multipart("alternative", TEXT_PART, PAGE_PART, boundary="c"), ATTACHED), 1),
        (multipart("mixed", multipart("related", NESTED, IMAGE, boundary="bb"), FORWARDED), 1),
        (multipart("mixed", PAGE_PART, PAGE_PART), 2),
        (multipart("mixed", TEXT_PART, ATTACHED, INLINE_NAMED, FORWARDED, IMAGE), 0),
        (TEXT_PART, 0),
        (ATTACHED, 0),
        (FORWARDED, 0),
        (b"\r\n" + PAGE.encode(), 0),
    ],
)  # fmt: skip
def test_only_bodies_change(message: bytes, changed: int) -> None:
    content = HEAD + message
    found = dressed(content)
    assert len(PIXEL.findall(found.decode())) == len(CLICK.findall(found.decode())) == changed
    assert undressed(found.decode()) == content.decode()


MALFORMED = [
    HEAD + b"Content-Type: multipart/mixed\r\n\r\n--b\r\n" + PAGE_PART + b"\r\n--b--\r\n",
    HEAD + multipart("mixed", PAGE_PART).removesuffix(b"--b--\r\n"),
    HEAD + multipart("mixed", multipart("related", PAGE_PART, boundary="c").replace(b"--c--", b"--c")),
    HEAD + b"Content-Transfer-Encoding: base64\r\n" + multipart("mixed", PAGE_PART),
    HEAD + HTML + HTML + b"\r\n" + PAGE.encode(),
    HEAD + b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n" + PAGE_PART,
    HEAD + b"Content-Transfer-Encoding: x-uuencode\r\n" + PAGE_PART,
    HEAD + b"Content-Transfer-Encoding: base64\r\n" + PAGE_PART,
    HEAD + b"Content-Transfer-Encoding: base64\r\n" + HTML + b"\r\n" + base64.encodebytes(b"<p>") + b"-- !\r\n",
    HEAD + b"Content-Type: text/html; charset=nosuch\r\n\r\n" + PAGE.encode(),
    HEAD + b"Content-Type: text/html; charset=punycode\r\n\r\n" + PAGE.encode(),
    HEAD + b"Content-Type: text/html; charset=rot13\r\n\r\n" + PAGE.encode(),
    HEAD + b"Content-Type: text/html; charset=utf-16\r\n\r\n" + PAGE.encode(),
    HEAD + b"Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==\r\n" + PAGE_PART,
]


@pytest.mark.parametrize("content", MALFORMED)
def test_where_there_is_a_doubt_the_message_stays(content: bytes) -> None:
    assert dressed(content) == content


@pytest.mark.parametrize("depth", [15, 21, 1_000])
def test_what_lies_too_deep_stays(depth: int) -> None:
    message = PAGE_PART
    for level in range(depth):
        message = multipart("mixed", message, boundary=f"b{level}b")
    assert (dressed(HEAD + message) == HEAD + message) is (depth > 20)


def test_too_many_parts_links_or_octets_stay() -> None:
    for message, stays in (
        (multipart("mixed", *[PAGE_PART] * 199), False),
        (multipart("mixed", *[PAGE_PART] * 201), True),
        (HTML + b"\r\n" + b"<a href=http://x>\r\n" * MOST_LINKS, False),
        (HTML + b"\r\n" + b"<a href=http://x>\r\n" * (MOST_LINKS + 1), True),
        (PAGE_PART + b" " * MOST_HTML_BYTES, True),
    ):
        assert (dressed(HEAD + message) == HEAD + message) is stays


def test_what_encoding_anew_would_take_for_a_boundary_stays() -> None:
    hidden = b"Content-Transfer-Encoding: quoted-printable\r\n" + HTML + b"\r\n<a href=3D'https://x/'>\r\n=2D-b\r\n"
    content = HEAD + multipart("mixed", hidden)
    assert dressed(content) == content


PGP = b"-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\nhi\r\n"
SIGNED = [
    multipart("signed", PAGE_PART, b"Content-Type: application/pkcs7-signature; name=smime.p7s\r\n\r\nx"),
    multipart("signed", PAGE_PART, b"Content-Type: application/pgp-signature\r\n\r\nx"),
    multipart("encrypted", b"Content-Type: application/pgp-encrypted\r\n\r\nVersion: 1", PAGE_PART),
    multipart("mixed", multipart("SIGNED", PAGE_PART, TEXT_PART, boundary="c"), PAGE_PART),
    multipart("mixed", PAGE_PART, b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\nx"),
    multipart("mixed", PAGE_PART, b"Content-Type: application/x-pkcs7-mime\r\n\r\nx"),
    multipart("mixed", PAGE_PART, b"Content-Type: application/x-pkcs7-signature\r\n\r\nx"),
    multipart("mixed", PAGE_PART, b'Content-Type: application/octet-stream; name="smime.P7M"\r\n\r\nx'),
    multipart("alternative", b"Content-Type: text/plain\r\n\r\n" + PGP, PAGE_PART),
    multipart("alternative", b"\r\n" + PGP, PAGE_PART),
    multipart("alternative", b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(PGP), PAGE_PART),
    multipart("alternative", b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=2D" + PGP[1:], PAGE_PART),
    HTML + b"\r\n<pre>" + PGP + b"</pre>" + PAGE.encode(),
    b"DKIM-Signature: v=1; h=from; b=x\r\n" + PAGE_PART,
    b"dkim-signature:\r\n v=1; h=from; b=x\r\n" + PAGE_PART,
    b"ARC-Seal: i=1; b=x\r\n" + PAGE_PART,
    b"ARC-Message-Signature: i=1; h=from; b=x\r\n" + PAGE_PART,
    b"DomainKey-Signature: a=rsa-sha1; b=x\r\n" + PAGE_PART,
]


@pytest.mark.case(46)
@pytest.mark.parametrize("message", SIGNED)
def test_signed_and_encrypted_messages_are_not_changed(message: bytes) -> None:
    content = HEAD + message
    assert dressed(content) == content
    assert dressed(content, ALL).endswith(content)


@pytest.fixture(scope="module")
def signing_key() -> tuple[bytes, bytes]:
    """Return a private key, and what the DNS says of it."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


@pytest.mark.case(46)
@pytest.mark.parametrize(
    ("signed", "added"),
    [
        ([b"From", b"To", b"Subject"], True),
        ([b"From", b"Subject", b"List-Unsubscribe"], False),
        ([b"From", b"Subject", b"List-Unsubscribe-Post"], False),
    ],
)
def test_a_dkim_signature_of_the_application_still_verifies(
    signing_key: tuple[bytes, bytes], signed: list[bytes], added: bool  # noqa: FBT001
) -> None:  # fmt: skip
    private, record = signing_key
    content = HEAD + PAGE_PART
    content = dkim.sign(content, b"s", b"example.org", private, include_headers=signed) + content
    found = dressed(content, ALL)
    assert dkim.verify(found, dnsfunc=lambda *_, **__: record)
    assert found.endswith(content)
    assert (found != content) is added
    assert not dkim.verify(found.replace(b"https://example.org/?", b"https://x/?"), dnsfunc=lambda *_, **__: record)


def test_one_click() -> None:
    content = HEAD + TEXT_PART
    found = dressed(content, ONE_CLICK)
    assert found.endswith(content)
    message = email.message_from_bytes(found, policy=email.policy.default)
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = re.fullmatch(r"<https://mail\.example\.com/unsubscribe/([\w-]+)>", str(message["List-Unsubscribe"]).strip())
    assert url
    assert target(url[1]) == SignedLink(kind="unsubscribe", email_id=job().email_id, target="to@example.net")
    assert max(map(len, found.removesuffix(content).split(b"\r\n"))) <= 120
    assert found.startswith(b"List-Unsubscribe:\r\n <https://")


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (HEAD, {"recipients": ("a@example.net", "b@example.net")}),
        (HEAD, {"recipients": ()}),
        (HEAD, {"some_have_it": True}),
        (HEAD, {"refused": (("b@example.net", "no"),)}),
        (HEAD, {"recipients": ("no address",)}),
        (HEAD, {"recipients": (f"a@{'example.' * 100}net",)}),
        (b"list-unsubscribe: <mailto:x@example.org>\r\n" + HEAD, {}),
        (b"List-Unsubscribe-Post : x\r\n" + HEAD, {}),
        (b"DKIM-Signature: v=1; h=from:List-Unsubscribe ; b=x\r\n" + HEAD, {}),
        (b"DKIM-Signature: v=1;\r\n\th = from\r\n : LIST-unsubscribe-\r\n post; b=x\r\n" + HEAD, {}),
        (b"ARC-Message-Signature: i=1; h=from:list-unsubscribe; b=x\r\n" + HEAD, {}),
        (b"DKIM-Signature: unreadable\r\n" + HEAD, {}),
        (b" folded\r\n" + HEAD, {}),
        (b"\r\nno header", {}),
    ],
)
def test_where_one_click_would_be_wrong(content: bytes, changes: dict[str, Any]) -> None:
    assert dressed(content, ONE_CLICK, **changes) == content


def test_one_click_needs_https() -> None:
    links = Links(key=LINKS.key, public_url="http://127.0.0.1:8025")
    found = dress(HEAD + PAGE_PART, job(route=ALL), links)
    assert b"List-Unsubscribe" not in found
    assert b"http://127.0.0.1:8025/api/track/click/" in found


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
def test_a_megabyte_of_links_is_dressed_in_one_pass(encoding: str) -> None:
    def linking(links: int) -> tuple[str, bytes]:
        page = "".join(
            f'<p>gr\u00fc\u00df <a class="b" href="https://example.org/{n}">{n}</a> {"x" * 180}</p>\r\n'
            for n in range(links)
        )
        fields = (
            b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: " + encoding.encode() + b"\r\n\r\n"
        )
        return page, HEAD + fields + encoded(page.encode(), encoding)

    assert_linear(lambda links: dressed(linking(links)[1]), 200)
    page, content = linking(4_500)
    assert len(content) > 1_000_000
    assert undressed(page_of(dressed(content))) == page


pieces = st.sampled_from([
    b"--b", b"--b--", b"--c", b"--c--", b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b";", b'"', b"=", b"\0", b"\xff",
    b"<a href=", b"http://x/", b"<a href='http://x'>", b"</body>", b"\r\n--b\r\nContent-Type: text/html\r\n\r\n", b"&#",
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"Content-Type: multipart/related; boundary=c\r\n\r\n",
    b"Content-Type: text/html\r\n", b"Content-Type: text/html; charset=utf-16\r\n", b"\r\n--b--\r\n", b"charset=idna",
    b"Content-Type: text/html; charset=utf-7\r\n", b"Content-Type: text/html; charset*0*=utf-8''a%C3; charset*1=b\r\n",
    b"Content-Transfer-Encoding: base64\r\n\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n\r\n", b"=3", b"QQ=",
    b"PGEgaHJlZj1odHRwOi8veD4=",
])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(pieces, st.binary(max_size=10)), max_size=40).map(b"".join), st.booleans())
def test_any_octets_come_out(octets: bytes, headed: bool) -> None:  # noqa: FBT001
    content = HEAD + HTML + octets if headed else octets
    found = dressed(content, ALL)
    assert found == dressed(content, ALL)
    assert dressed(content, Route()) == content


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40)
bodies = st.lists(words, max_size=6).map(lambda lines: "".join(f"{line.strip()}\n" for line in lines))
anchors = st.sampled_from(
    ["", "<a href='https://example.org/?a=1&amp;b=2'>x</a>", "</body>", "<a href=#x>", "<!-- <a -->"]
)
encodings = st.sampled_from([None, "quoted-printable", "base64", "8bit"])


@settings(max_examples=150, deadline=None)
@given(words, bodies, bodies.flatmap(lambda text: anchors.map(lambda anchor: text + anchor)), encodings,
       st.lists(st.binary(max_size=60), max_size=2), st.sampled_from([BOTH, OPENS, CLICKS]))  # fmt: skip
def test_all_but_the_page_stays(  # noqa: PLR0917
    subject: str, text: str, page: str, encoding: str | None, attached: list[bytes], route: Route
) -> None:
    written = EmailMessage(policy=SMTP)
    written["From"], written["To"], written["Subject"] = (
        "App <a@example.org>",
        "b@example.net",
        " ".join(subject.split()),
    )
    written.set_content(text)
    written.add_alternative(page, subtype="html", cte=encoding)
    for content in attached:
        written.add_attachment(content, maintype="application", subtype="octet-stream", filename="a.bin")
    before = written.as_bytes()
    after = dressed(before, route)
    one, other = (email.message_from_bytes(octets, policy=email.policy.default) for octets in (before, after))
    assert one.items() == other.items()
    for was, now in zip(one.walk(), other.walk(), strict=True):
        assert was.get_content_type() == now.get_content_type()
        if was.get_content_type() == "text/html":
            assert [item for item in was.items() if "encoding" not in item[0].lower()] == [
                item for item in now.items() if "encoding" not in item[0].lower()
            ]
        elif not was.is_multipart():
            assert was.as_bytes() == now.as_bytes()
    assert unescape(undressed(page_of(after))) == unescape(page_of(before))
    assert bool(PIXEL.search(page_of(after))) is route.track_opens
