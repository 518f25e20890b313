"""Which links of an HTML text change, and that nothing else does."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.html_links import LONGEST_HREF, rewritten
from tests.linear import assert_linear

NEW = "https://t.example/1"
PIXEL = "<img>"


def new_url(url: str) -> str | None:
    return NEW if url.startswith("http") else None


def seen(html: str) -> list[str]:
    """Return the URLs that are asked for."""
    found: list[str] = []
    assert rewritten(html, found.append) == html
    return found


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<a href="http://x/">x</a>', f'<a href="{NEW}">x</a>'),
        ("<a href='http://x/'>x</a>", f"<a href='{NEW}'>x</a>"),
        ("<a href=http://x/>x</a>", f"<a href={NEW}>x</a>"),
        ("<a href=http://x>x</a>", f"<a href={NEW}>x</a>"),
        ('<A CLASS=b HREF="HTTP://x">x</A>', '<A CLASS=b HREF="HTTP://x">x</A>'),
        ('<A CLASS=b HREF="http://x">x</A>', f'<A CLASS=b HREF="{NEW}">x</A>'),
        ('<a\n  class = "b"\n  href\n=\n"http://x"\n>', f'<a\n  class = "b"\n  href\n=\n"{NEW}"\n>'),
        ('<a/href="http://x"/>', f'<a/href="{NEW}"/>'),
        ('<a href=" \r\n\thttp://x\n ">', f'<a href="{NEW}">'),
        ('<a title="a > b" href="http://x">', f'<a title="a > b" href="{NEW}">'),
        ("<a class=it's href='http://x'>", f"<a class=it's href='{NEW}'>"),
        ('<a href="http://x" href="http://y">', f'<a href="{NEW}" href="http://y">'),
        ('<p><a href="http://x">1</a><a href="http://y">2</a>', f'<p><a href="{NEW}">1</a><a href="{NEW}">2</a>'),
        ('<!--> <a href="http://x">', f'<!--> <a href="{NEW}">'),
        ('<!--[if !mso]><!--><a href="http://x"><!--<![e]-->', f'<!--[if !mso]><!--><a href="{NEW}"><!--<![e]-->'),
        ('<![if !mso]><a href="http://x"><![endif]>', f'<![if !mso]><a href="{NEW}"><![endif]>'),
        ("<script>'<a href=1>'</script><a href='http://x'>", f"<script>'<a href=1>'</script><a href='{NEW}'>"),
        ('< a><a href="http://x">', f'< a><a href="{NEW}">'),
        ('1 < 2 <<a href="http://x">', f'1 < 2 <<a href="{NEW}">'),
    ],
)  # fmt: skip
def test_a_link_changes_and_nothing_else(html: str, expected: str) -> None:
    assert rewritten(html, new_url) == expected


@pytest.mark.parametrize(
    "html",
    [
        "",
        "<a>",
        "<a href>",
        "<a href=>",
        '<a href="">',
        '<a name="http://x">',
        '<a data-href="http://x">',
        '<a xlink:href="http://x">',
        '<a href href="http://x">',
        '<a href="" href="http://x">',
        '<abbr href="http://x">',
        '<area href="http://x">',
        '<link href="http://x">',
        '<base href="http://x">',
        '<v:roundrect href="http://x">',
        '<a:b href="http://x">',
        '</a href="http://x">',
        '<!-- <a href="http://x">x</a> -->',
        '<!-- <a href="http://x">x</a>',
        '<!--[if mso]><a href="http://x">x</a><![endif]-->',
        '<!doctype <a href="http://x">',
        '<? <a href="http://x"> ?>',
        '<![CDATA[ > <a href="http://x"> ]]>',
        '<script>"<a href="http://x">"</script>',
        '<SCRIPT type="a>b">"<a href="http://x">"</script >',
        '<style><a href="http://x"></style>',
        '<textarea><a href="http://x"></textarea>',
        '<title><a href="http://x"></title>',
        '<script><a href="http://x">',
        '<plaintext></plaintext><a href="http://x">',
        """<img alt='<a href="http://x">'>""",
        '<a href="http://x>',
        '<p title="> <a href=http://x>',
        "<p title='> <a href=http://x>",
        '<a title=" href=http://x>',
        '<a href="http://x"',
        '<a href="http://x" title="',
        '<a href="javascript:http://x">',
        '<a href="mailto:a@b.example">',
        '<a href="#x">',
        '<a href="//x/y">',
        '<a href="{{url}}">',
        '&lt;a href="http://x"&gt;',
        f'<a href="http://x/{"y" * LONGEST_HREF}">',
    ],
)
def test_what_is_no_link_stays(html: str) -> None:
    assert rewritten(html, new_url) == html


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://x/?a=1&amp;b=2", "http://x/?a=1&b=2"),
        ("http://x/?a=1&b=2", "http://x/?a=1&b=2"),
        ("http://x/?a=1&copy=2&amp=3&lt3", "http://x/?a=1&copy=2&amp=3&lt3"),
        ("http://x/?a&amp", "http://x/?a&"),
        ("http://x/?a&nosuch;", "http://x/?a&nosuch;"),
        ("http&#58;&#x2f;&#x2F;x/&eacute;", "http://x/é"),
        ("&#104;ttp://x", "http://x"),
        ("http://x/&#" + "1" * 3_900 + ";", "http://x/\U0010f447" + "1" * 3_893 + ";"),
        ("http://x/&#" + "9" * 3_900, "http://x/\ufffd" + "9" * 3_893),
        ("\thttp://x/a b\n", "http://x/a b"),
        ("\u00a0http://x", "\u00a0http://x"),
    ],
)
def test_references_are_undone_as_in_an_attribute(value: str, url: str) -> None:
    assert seen(f'<a href="{value}">') == [url]


def test_the_new_url_is_escaped() -> None:
    assert (
        rewritten('<a href="http://x">', lambda _: 'https://y/?a="&<>') == '<a href="https://y/?a=&quot;&amp;&lt;&gt;">'
    )


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("", PIXEL),
        ("hi", f"hi{PIXEL}"),
        ("<body>hi</body></html>", f"<body>hi{PIXEL}</body></html>"),
        ("<BODY>hi</BODY >\r\n", f"<BODY>hi{PIXEL}</BODY >\r\n"),
        ("<body>1</body><body>2</body>", f"<body>1</body><body>2{PIXEL}</body>"),
        ("<body>1</body><!-- </body> -->", f"<body>1{PIXEL}</body><!-- </body> -->"),
        ("<script></body></script>", f"<script></body></script>{PIXEL}"),
        ('<a href="http://x"></body><a href="http://y">', f'<a href="{NEW}">{PIXEL}</body><a href="{NEW}">'),
    ],
)  # fmt: skip
def test_the_pixel_stands_before_the_bodys_end(html: str, expected: str) -> None:
    assert rewritten(html, new_url, PIXEL) == expected


class Links(HTMLParser):
    """Another reader's opinion."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        hrefs = [value for name, value in attrs if name == "href"]
        if tag == "a" and hrefs and hrefs[0]:
            self.found.append(hrefs[0])


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>&"), max_size=10)
values = st.text("abc:/?=#%~ é\n", max_size=12).map(lambda value: f"http://x/{value}")
links = st.builds(lambda before, url, quote: f"<p{quote}>{before}<a class={quote}b{quote} href={quote}{url}{quote}>",
                  texts, values, st.sampled_from("\"'"))  # fmt: skip
others = st.sampled_from(
    ["<!-- <a href='http://no'> -->", "<style><a href=no></style>", "<br/>", "</a>", "<img alt='<a>'>"]
)
pages = st.lists(st.one_of(texts, links, others), max_size=8).map("".join)


@settings(deadline=None)
@given(pages)
def test_it_finds_what_another_reader_finds(html: str) -> None:
    html = html.replace('<p"', "<p").replace("<p'", "<p")
    reader = Links()
    reader.feed(html)
    reader.close()
    assert seen(html) == [url.strip("\t\n\f\r ") for url in reader.found]


marks = [
    "<",
    ">",
    "<a ",
    "href",
    "=",
    '"',
    "'",
    "http://x",
    "<!--",
    "-->",
    "</",
    "body",
    "script",
    "<title>",
    "&#",
    "]]>",
]
soup = st.lists(st.one_of(st.sampled_from(marks), st.text(max_size=5)), max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(soup)
def test_any_text_is_kept_but_for_its_links(html: str) -> None:
    assert rewritten(html, lambda _: None) == html
    assert rewritten(html, lambda _: None, "\0pixel\0").replace("\0pixel\0", "") == html


@pytest.mark.parametrize(
    "unit",
    ["<", "<a ", "<a href=", "<a href='", '<a href="', "<a href=http://x>", "<!--", "<!", "</", "<![CDATA[", "<title",
     "<title>", "<script></", "</body>", "<a b=c ", "&", "&#", "&a", " ", "/", "=", "<a href='&a'>", "<?", "</script"],
)  # fmt: skip
@pytest.mark.parametrize("head", ["", "<a href='", "<a ", "<script>"])
def test_much_of_anything_is_read_in_passes_over_it(head: str, unit: str) -> None:
    """However many, they are few: one for each character would not end."""

    def rewrite(characters: int) -> None:
        rewritten(head + unit * (characters // len(unit)), new_url, PIXEL)

    assert_linear(rewrite, 5_000)
    rewrite(250_000)
