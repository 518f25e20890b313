"""Links of an HTML text, found as browsers find them (WHATWG HTML, 13.2.5); what is not replaced stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape, unescape
from html.entities import html5

_SPACE = "\t\n\f\r "
LONGEST_HREF = 4_000
"""Characters as written. Python reads no number of more than 4,300 digits, which a reference could have."""

_MARKUP = re.compile(
    rf"""<(?: (?P<opening>!--(?!-?>)|!\[CDATA\[)
           |  (?:[!?]|/(?![A-Za-z]))[^>]*+>?
           |  (?P<closing>/)?(?P<name>[A-Za-z][^{_SPACE}/>]*+) )""",
    re.VERBOSE,
)
_ATTRIBUTE = re.compile(
    rf"""[{_SPACE}/]*+(?P<name>[^{_SPACE}/>][^{_SPACE}/>=]*+)
         (?:[{_SPACE}]*+=[{_SPACE}]*+
            (?: "(?P<double>[^"]*+)" | '(?P<single>[^']*+)' | (?P<bare>[^{_SPACE}>"'][^{_SPACE}>]*+)
             |  (?P<unended>["']) )? )?""",
    re.VERBOSE,
)
_TAG_END = re.compile(rf"[{_SPACE}/]*+>")
_TEXT_UNTIL = {
    name: re.compile(rf"</{name}(?=[{_SPACE}/>])", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
} | {"plaintext": re.compile(r"(?!)"), "!--": re.compile(r"--!?>"), "![CDATA[": re.compile(r"\]\]>")}
"""What holds text, whatever that looks like: elements, comments."""
_REFERENCE = re.compile(
    r"&(?:[#](?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});? | ([A-Za-z][A-Za-z0-9]*+(?:;|(?![A-Za-z0-9=]))))", re.VERBOSE
)


@dataclass(frozen=True, slots=True)
class _Tag:
    start: int
    name: str
    closing: bool
    href: tuple[int, int] | None


def rewritten(html: str, new_url: Callable[[str], str | None], pixel: str = "") -> str:
    """Give each link that `new_url` has another URL for that URL, and put `pixel` before the body's end."""
    pieces: list[str] = []
    done = 0
    body_end: int | None = None
    for tag in _tags(html):
        if tag.name == "body" and tag.closing:
            pieces.append(html[done : tag.start])
            done, body_end = tag.start, len(pieces)
        if tag.name != "a" or tag.closing or tag.href is None:
            continue
        start, end = tag.href
        if end - start <= LONGEST_HREF and (url := new_url(_unescaped(html[start:end]).strip(_SPACE))):
            pieces += [html[done:start], escape(url)]
            done = end
    pieces.append(html[done:])
    pieces.insert(len(pieces) if body_end is None else body_end, pixel)
    return "".join(pieces)


def _tags(html: str) -> Iterator[_Tag]:
    at = 0
    while found := _MARKUP.search(html, at):
        at = found.end()
        opening = found["opening"]
        if found["name"]:
            name, closing = found["name"].lower(), found["closing"] is not None
            href, end = _attributes(html, at)
            if end is None:
                return
            at = end
            yield _Tag(found.start(), name, closing, href)
            opening = "" if closing else name
        if opening in _TEXT_UNTIL:
            text_end = _TEXT_UNTIL[opening].search(html, at)
            if not text_end:
                return
            at = text_end.start()


def _attributes(html: str, at: int) -> tuple[tuple[int, int] | None, int | None]:
    """Return where the value of the first href is, and where the tag ends; a tag that does not end is none."""
    hrefs: list[tuple[int, int]] = []
    while one := _ATTRIBUTE.match(html, at):
        if one["unended"]:
            return None, None
        at = one.end()
        if one["name"].lower() == "href":
            hrefs.append(max(map(one.span, ("double", "single", "bare"))))
    end = _TAG_END.match(html, at)
    return (hrefs[0] if hrefs and hrefs[0][0] >= 0 else None), end.end() if end else None


def _unescaped(value: str) -> str:
    """Undo character references as in an attribute: `&copy=` is no copyright sign there."""
    return _REFERENCE.sub(lambda found: unescape(found[0]) if not found[1] or found[1] in html5 else found[0], value)
