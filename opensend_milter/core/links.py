"""Links that we put into a message: made when it is sent, understood when somebody follows one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from opensend_milter.core.address import normal_domain
from opensend_milter.core.model import EmailId, Route
from opensend_milter.core.signing import link_token, opened_link

LinkKind = Literal["open", "click", "unsubscribe"]
PATHS: dict[LinkKind, str] = {
    "open": "/api/track/open/",
    "click": "/api/track/click/",
    "unsubscribe": "/unsubscribe/",
}
LONGEST_URL_OCTETS = 2_000

_LETTERS: dict[LinkKind, bytes] = {"open": b"o", "click": b"c", "unsubscribe": b"u"}
_KINDS: dict[bytes, LinkKind] = {letter: kind for kind, letter in _LETTERS.items()}
_BASE = re.compile(r"https?://[\w.:\[\]-]++[\w./~-]*", re.ASCII)
# A host beyond ASCII would need IDNA; browsers take a backslash for a slash.
_WEB_URL = re.compile(
    r"https?://[\w.~!$&'()*+,;=:@%\[\]-]+(?:[/?#][^\x00-\x1f\x7f-\x9f\\\ud800-\udfff]*)?", re.ASCII | re.IGNORECASE
)
_AS_BROWSERS = "".join(map(chr, range(0x21, 0x7F))).translate({ord(character): None for character in '"<>'})
_ADDRESS = re.compile(r"[^\x00-\x20\x7f\ud800-\udfff][^\x00-\x20@\x7f\ud800-\udfff]*@[^\x00-\x20\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedLink:
    """What following a link says."""

    kind: LinkKind
    email_id: EmailId
    target: str = ""
    """Of a click the URL, of an unsubscription the recipient's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Makes our links, and understands no others."""

    key: bytes
    """Of the purpose `link`."""
    public_url: str = ""
    """Where our HTTP process is reached, for domains without a host of their own."""

    def base(self, route: Route) -> str:
        """Return what a domain's links begin with; empty where there is nothing that could serve them."""
        if route.tracking_host:
            host = normal_domain(route.tracking_host)
            return f"https://{host}" if host else ""
        return base_of(self.public_url)

    def url(self, base: str, link: SignedLink) -> str:
        """Return the URL that says this; the same each time."""
        said = _LETTERS[link.kind] + link.target.encode("utf-8")
        return f"{base}{PATHS[link.kind]}{link_token(self.key, link.email_id, said)}"

    def opened(self, token: str) -> SignedLink | None:
        """Return what a token says, or None where it is not one of ours."""
        found = opened_link(self.key, token)
        if found is None:
            return None
        email_id, said = found
        kind = _KINDS.get(said[:1])
        try:
            target = said[1:].decode("utf-8")
        except UnicodeDecodeError:
            return None
        if kind is None or not _fits(kind, target):
            return None
        return SignedLink(kind=kind, email_id=email_id, target=target)


def base_of(public_url: str) -> str:
    """Return what our own addresses begin with; empty where that is no plain web address."""
    return public_url.rstrip("/") if _BASE.fullmatch(public_url) else ""


def is_web_url(url: str) -> bool:
    """Tell whether a browser may be sent there."""
    return _WEB_URL.fullmatch(url) is not None and len(url.encode("utf-8")) <= LONGEST_URL_OCTETS


def is_one_address(address: str) -> bool:
    """Tell whether it could be a recipient's."""
    return _ADDRESS.fullmatch(address) is not None


def location(url: str) -> str:
    """Spell a web URL in the octets of a header field, as browsers do; what is encoded already stays."""
    return quote(url, safe=_AS_BROWSERS)


def _fits(kind: LinkKind, target: str) -> bool:
    match kind:
        case "open":
            return not target
        case "click":
            return is_web_url(target)
        case "unsubscribe":
            return is_one_address(target)
