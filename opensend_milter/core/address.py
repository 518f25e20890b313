"""Read, normalise and compare addresses and domains (RFC 5322, 3.4, and 6531 for UTF-8)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

from idna import uts46_remap, valid_contextj

from opensend_milter.core.budget import Budget
from opensend_milter.core.model import Address, Mailbox
from opensend_milter.core.words import decode_words, undone

# Possessive or atomic throughout: what a stranger left open is gone over once. Not `(...)*+`: Python before 3.11.5
# goes on behind the part of a last turn that failed.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]++)
    | (?P<quoted>"(?>(?:[^"\\\x00]+|\\[^\x00])*)")
    | (?P<literal>\[[^\[\]\\\x00-\x20]*+\])
    | (?P<atom>[^\s()<>@,;:\\".\[\]\x00-\x1f\x7f]++)
    | (?P<special>[()<>@,;:.])""",
    re.VERBOSE,
)
_IN_COMMENT = re.compile(r"[^()\\]++|\\.?|[()]", re.DOTALL)
_PIECE = re.compile(r'(?>(?:[^,"]+|"(?>(?:[^"\\]+|\\.?)*)(?:"|\Z))+)', re.DOTALL)
"""What stands between two commas outside quotes; a quote that is left open goes on to the end."""
_ATOMS = r"(?>[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)"
_WORDS = r"(?>[A-Za-z0-9]+(?: [A-Za-z0-9]+)*)"
_USUAL_ADDRESS = re.compile(rf"{_ATOMS}@{_ATOMS}")
_USUAL = re.compile(rf"^[ \t]*+(?:(?:({_WORDS}) )?(<))?({_ATOMS}@{_ATOMS})(?(2)>)[ \t]*+$", re.MULTILINE)
"""What almost each mailbox is: plain words. The reader below says the same of it, ten times more slowly."""
_LOWERED = r"(?>[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)"
_USUAL_RECIPIENT = re.compile(rf"^<({_ATOMS}@{_LOWERED})>$", re.MULTILINE)
_ODD = ("..", ".@", "\n.", "xn--")
"""What is in none of ASCII addresses, one a line, that have one spelling."""
_ATEXT = r"""[^\s()<>@,;:\\".\[\]\x00-\x1f\x7f]"""
_ATOMS_AND_DOTS = re.compile(rf"(?>(?:{_ATEXT}|\.)+)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_QUOTED = re.compile(r'"(?>(?:[^"\\]+|\\.?)*)(?:"|\Z)|\((?>(?:[^()\\]+|\\.?)*)(?:[()]|\Z)', re.DOTALL)
_ODD_IN_A_NAME = re.compile(r"[\[\],;:@\\<>]")
_AN_ADDRESS = re.compile(r"[^\s@]@[^\s@]")
_LOOKS_LIKE_A_BRACKET = {"\uff1c": "<", "\ufe64": "<", "\uff1e": ">", "\ufe65": ">"}
_LOOKS_LIKE_ONE = re.compile(f"[{''.join(_LOOKS_LIKE_A_BRACKET)}]")
_SHOWN = 40
_MAILBOX = re.compile(
    rf"""(?:@[^:<>"]*+:)?                                   # a source route (RFC 5321, 4.1.2): to be left out
    (?:((?>(?:{_ATEXT}|\.)+))|"((?>(?:[^"\\]+|\\.)*))")@
    (\[[^\[\]\\\s]++\]|{_ATEXT}(?>(?:{_ATEXT}|\.)*)(?<!\.))""",
    re.VERBOSE,
)
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
MAX_DOMAIN_OCTETS = 253
_MAX_LABEL = 63
_MOST_CHARACTERS = 1_024
"""Of a domain, before it is looked at: no name is longer in any spelling."""
MAX_ADDRESS_OCTETS = 320
_STEPS_A_PIECE = 4
_JOINER = re.compile("[\u200c\u200d]")
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point."""


class NotAnAddressListError(ValueError):
    """The field is no list of addresses; the text says why."""


@dataclass(slots=True)
class _Token:
    kind: str
    text: str
    spaced: bool
    """White space or a comment stands before it."""
    comment: str
    """All that stands before it in brackets."""


def usual_mailbox(value: str, budget: Budget) -> Mailbox | None:
    """Read a field that is one mailbox of plain words, as almost each is; of others nothing is said."""
    found = _USUAL.fullmatch(value)
    if not found:
        return None
    budget.spend(1, "addresses")
    return Mailbox(found[1] or "", Address(found[3]))


def parse_addresses(
    value: str, *, at_most: int, plain: bool = False, budget: Budget | None = None
) -> tuple[Mailbox, ...]:
    """Read a header field's addresses strictly, members of groups included.

    `plain`: neither groups nor routes, of which each reader shows something else.

    Raise NotAnAddressListError where anything in it is not an address, a comment or a group.
    """
    budget = budget or Budget.of(len(value))
    if at_most and (one := usual_mailbox(value, budget)):
        return (one,)
    pieces = value.count(",") + 1
    if pieces <= at_most and "\n" not in value:
        usual = _USUAL.findall(value.replace(",", "\n"))
        budget.spend(len(usual), "addresses")
        if len(usual) == pieces:
            return tuple([Mailbox(name, Address(address)) for name, _, address in usual])
    try:
        return tuple(_Reader(value, at_most, budget, plain=plain).read())
    except NotAnAddressListError as error:
        raise NotAnAddressListError((plain and _odd_character(value)) or str(error)) from None


def parse_some_addresses(value: str, *, at_most: int, budget: Budget) -> tuple[Mailbox, ...]:
    """Read what can be read: a header that only says how a recipient is shown need not be perfect."""
    try:
        return parse_addresses(value, at_most=at_most, budget=budget)
    except NotAnAddressListError:
        pieces = islice(_PIECE.finditer(value), at_most)
    found: list[Mailbox] = []
    for piece in pieces:
        budget.spend(_STEPS_A_PIECE, "addresses")
        try:
            found += parse_addresses(piece[0], at_most=at_most, budget=budget)
        except NotAnAddressListError:
            continue
    return tuple(found)


class _Reader:
    def __init__(self, value: str, at_most: int, budget: Budget, *, plain: bool) -> None:
        self._plain = plain
        self._tokens = list(_tokens(value, budget))
        self._next = 0
        self._comments: list[str] = []
        """Those of the mailbox that is being read."""
        self._at_most = at_most

    def _peek(self) -> str:
        return self._tokens[self._next].text

    def _take(self) -> _Token:
        """Take a token; what stands in brackets in front of it belongs to the same mailbox."""
        token = self._tokens[self._next]
        self._next += 1
        if token.comment:
            self._comments.append(token.comment)
        return token

    def read(self) -> Iterator[Mailbox]:
        found = 0
        in_group = False
        while self._peek():
            self._comments = []
            if self._peek() == ",":
                self._take()
                continue
            if self._peek() == ";" and in_group:
                self._take()
                in_group = False
                continue
            phrase = self._words()
            if self._peek() == ":" and phrase and not in_group:
                self._refuse_where_plain("a group")
                self._take()
                in_group = True
                continue
            mailbox = self._angle(phrase) if self._peek() == "<" else self._bare(phrase)
            if self._peek() not in {"", ",", ";"}:
                raise NotAnAddressListError(f"unexpected {_shown(self._peek())} after an address")
            found += 1
            if found > self._at_most:
                raise NotAnAddressListError(f"more than {self._at_most} addresses")
            yield mailbox
        if in_group:
            raise NotAnAddressListError("a group without its ';'")

    def _refuse_where_plain(self, what: str) -> None:
        if self._plain:
            raise NotAnAddressListError(what)

    def _words(self) -> list[_Token]:
        words = []
        while self._tokens[self._next].kind in {"atom", "quoted"} or self._peek() == ".":
            words.append(self._take())
        return words

    def _angle(self, phrase: list[_Token]) -> Mailbox:
        address = self._in_brackets()
        return Mailbox(self._name(_display_name(phrase)), address)

    def _in_brackets(self) -> Address:
        self._take()
        if self._peek() == "@":
            self._refuse_where_plain("a route")
            self._skip_route()
        address = self._addr_spec(self._words())
        if self._peek() != ">":
            raise NotAnAddressListError("'<' without '>'")
        self._take()
        return address

    def _skip_route(self) -> None:
        while self._peek() and self._peek() != ":":
            if self._peek() in {"<", ">"}:
                raise NotAnAddressListError("a route without its ':'")
            self._take()
        if not self._peek():
            raise NotAnAddressListError("a route without its ':'")
        self._take()

    def _bare(self, phrase: list[_Token]) -> Mailbox:
        address = self._addr_spec(phrase)
        if self._peek() != "<":
            return Mailbox(self._name(""), address)
        # Some programs write an address in front of itself, unquoted; another one there is what a reader would see.
        if self._in_brackets() != address:
            raise NotAnAddressListError("another address in front of the one between '<' and '>'")
        return Mailbox(self._name(address), address)

    def _name(self, phrase: str) -> str:
        """Add what stands in brackets: with some old programs it is the whole name."""
        behind = self._tokens[self._next].comment
        if not behind and not self._comments:
            return phrase
        comments = [*self._comments, behind]
        comment = decode_words(" ".join(filter(None, comments)))
        return f"{phrase} ({comment})" if phrase and comment else phrase or comment

    def _addr_spec(self, local: list[_Token]) -> Address:
        if self._peek() != "@":
            ends = self._peek() in {"", ",", ";"} or (local and self._peek() == ">")
            raise NotAnAddressListError("an address without '@'" if ends else f"unexpected {_shown(self._peek())}")
        if self._take().spaced or self._tokens[self._next].spaced:
            raise NotAnAddressListError("white space around '@'")
        domain = self._take().text if self._peek().startswith("[") else _dotted(self._words(), "domain")
        return Address(f"{_dotted(local, 'local part')}@{domain}")


def _tokens(value: str, budget: Budget) -> Iterator[_Token]:
    """Split into tokens, and an empty one at the end, each with what stands in brackets before it."""
    at = 0
    spaced = False
    comments: list[str] = []
    while at < len(value):
        budget.spend(1, "addresses")
        match = _TOKEN.match(value, at)
        if not match:
            what = "a quote that is not closed" if value[at] == '"' else f"unexpected {_shown(value[at])}"
            raise NotAnAddressListError(what)
        begin, at = at, match.end()
        kind = match.lastgroup or ""
        if match.group() == "(":
            at = _behind_comment(value, at, budget)
            comments.append(_ESCAPED.sub(r"\1", value[begin + 1 : at - 1]))
            spaced = True
        elif match.group() == ")":
            raise NotAnAddressListError("')' without '('")
        elif kind == "space":
            spaced = True
        else:
            yield _Token(kind, match.group(), spaced, " ".join(comments) if comments else "")
            spaced = False
            if comments:
                comments = []
    yield _Token("end", "", spaced, " ".join(comments))


def _behind_comment(value: str, at: int, budget: Budget) -> int:
    """Return where the comment ends that began before, with those in it."""
    depth = 1
    for match in _IN_COMMENT.finditer(value, at):
        budget.spend(1, "addresses")
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    raise NotAnAddressListError("a comment without its ')'")


def _dotted(words: list[_Token], what: str) -> str:
    """Join a dot-atom or a quoted local part.

    RFC 5322 lets old mail put white space and comments around the dots; readers differ on those, so we refuse them. It
    lets no local part begin or end with a dot or have two in a row, but there are mailboxes of such names.
    """
    for place, word in enumerate(words):
        if word.kind == "quoted" or (word.text == ".") != bool(place % 2) or (place and word.spaced):
            return _oddly_dotted(words, what)
    return "".join([word.text for word in words]) if len(words) % 2 else _oddly_dotted(words, what)


def _oddly_dotted(words: list[_Token], what: str) -> str:
    if not words:
        raise NotAnAddressListError(f"a {what} that is missing")
    is_quoted = any(word.kind == "quoted" for word in words)
    if what == "domain" and is_quoted:
        raise NotAnAddressListError("a quoted domain")
    if is_quoted and len(words) == 1:
        return _without_needless_quotes(words[0].text[1:-1])
    dots = [word.text == "." for word in words]
    if any(word.spaced for word in words[1:]) or any(not (one or other) for one, other in pairwise(dots)):
        raise NotAnAddressListError(f"a {what} that is not one word")
    text = "".join(word.text for word in words)
    if (what == "domain" or is_quoted) and (dots[0] or dots[-1] or any(one and other for one, other in pairwise(dots))):
        raise NotAnAddressListError(f"a {what} with a dot too many")
    return text


def _display_name(phrase: list[_Token]) -> str:
    name: list[str] = []
    for word in phrase:
        text = _ESCAPED.sub(r"\1", word.text[1:-1]) if word.kind == "quoted" else word.text
        name += [" ", text] if word.spaced and name else [text]
    return decode_words("".join(name))


def _odd_character(value: str) -> str | None:
    """Name what must not stand outside quotes in the name before an address, or only looks like a delimiter."""
    if look := _LOOKS_LIKE_ONE.search(value):
        return f"{_shown(look[0])} in place of '{_LOOKS_LIKE_A_BRACKET[look[0]]}'"
    name, bracket, _ = value.rpartition("<")
    bare = _QUOTED.sub("", name)
    odd = _ODD_IN_A_NAME.search(bare)
    return f"{_shown(odd[0])} outside quotes in the name" if bracket and odd and not _AN_ADDRESS.search(bare) else None


def _shown(text: str) -> str:
    """Write a piece of a stranger's field so that an SMTP reply can hold it."""
    if len(text) == 1 and not "!" <= text <= "~":
        return f"U+{ord(text):04X}"
    return f"'{text[:_SHOWN]}'" if text.isascii() else ascii(text[:_SHOWN])


def domain_of(address: str) -> str:
    """Return what is behind the last @."""
    return address.rpartition("@")[2]


def normal_domain(domain: str) -> str | None:
    """Return the domain as DNS has it, in lower case with A-labels (RFC 5890), or None where it is no domain name.

    What is not ASCII is mapped by UTS-46 first, as Postfix maps it. A trailing dot is no part of an address
    (RFC 5321, 2.3.5), so such a name is none.
    """
    # First of all: what is longer is neither remembered nor gone into, which would take the square of its length.
    return _normal_domain(domain) if len(domain) <= _MOST_CHARACTERS else None


@lru_cache(maxsize=4096)
def _normal_domain(domain: str) -> str | None:
    labels = _labels(domain)
    name = ".".join(labels)
    return name if len(name) <= MAX_DOMAIN_OCTETS and len(labels) > 1 else None


def _labels(domain: str) -> list[str]:
    """Return A-labels, or nothing where one of them cannot be."""
    try:
        # Not IDNA 2008's own rules: they refuse names that DNS has and mail goes to.
        shown = domain.lower() if domain.isascii() else uts46_remap(domain, std3_rules=False)
        labels = [_a_label(label) for label in shown.split(".")]
    except ValueError:
        return []
    return labels if all(map(_LABEL.fullmatch, labels)) else []


def _a_label(label: str) -> str:
    if label.isascii():
        return label
    # An invisible joiner is a letter of some scripts; between others a server of older rules leaves it out.
    if len(label) > _MAX_LABEL or not all(valid_contextj(label, one.start()) for one in _JOINER.finditer(label)):
        return ""
    return "xn--" + label.encode("punycode").decode("ascii")


def unicode_domain(ascii_domain: str) -> str:
    """Return a domain's other spelling, with U-labels."""
    if "xn--" not in ascii_domain:
        return ascii_domain
    return ".".join(map(_u_label, ascii_domain.split(".")))


def _u_label(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        shown = label[4:].encode("ascii").decode("punycode")
    except UnicodeError:
        return label
    # What is mapped to another name is no spelling of this one.
    return shown if _labels(shown) == [label] else label


def quoted(address: Address) -> Address:
    """Return an address as SMTP has it (RFC 5321, 4.1.2): in quotes where its dots are not where they belong."""
    local, _, domain = address.rpartition("@")
    return address if local.startswith('"') or _has_its_dots(local) else Address(f'"{local}"@{domain}')


def _has_its_dots(text: str) -> bool:
    """Tell whether each dot stands between two other characters."""
    return not (text.startswith(".") or text.endswith(".") or ".." in text)


def spellings(address: Address) -> tuple[str, ...]:
    """Return how another program may write an address: lower case, the domain in both forms, quotes where needed."""
    if ".." not in address and ".@" not in address and not address.startswith("."):
        return _spellings(address)
    said = quoted(address)
    return _spellings(address) if said == address else (*_spellings(address), *_spellings(said))


def _spellings(address: Address) -> tuple[str, ...]:
    lowered = address.lower()
    if address.isascii() and "xn--" not in lowered:
        return (lowered,)
    local, _, domain = address.rpartition("@")
    ascii_domain = normal_domain(domain)
    if ascii_domain is None or (domain.isascii() and "xn--" not in ascii_domain):
        return (lowered,)
    return tuple({lowered, f"{local.lower()}@{ascii_domain}", f"{local.lower()}@{unicode_domain(ascii_domain)}"})


def mapped(address: Address) -> Address | None:
    """Return an address with its domain as it is mapped, in U-labels; None where it has none. ASCII stays as it is."""
    local, _, domain = address.rpartition("@")
    if domain.isascii():
        return address
    name = normal_domain(domain)
    return Address(f"{local}@{unicode_domain(name)}") if name else None


def folded(address: Address) -> str:
    """Return what an address has in common with all that some server may take for it.

    Letters that differ in case, width or style only are one letter, invisible ones are none; the domain has A-labels.
    """
    if address.isascii():
        return address.lower()
    local, _, domain = address.rpartition("@")
    return f"{_fold(local)}@{normal_domain(domain) or domain.lower()}"


def _fold(text: str) -> str:
    """Leave out what is a matter of case, width and style (Unicode 3.13, D146)."""
    if text.isascii():
        return text.lower()
    once = unicodedata.normalize("NFD", _UNSEEN.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", once).casefold())


def listings(address: Address) -> tuple[str, ...]:
    """Return how a suppression list may have an address; what it has in other spellings is noted beside it, folded."""
    found = spellings(address)
    return found if address.isascii() else tuple({*found, *spellings(Address(folded(address)))})


def all_listings(addresses: Sequence[Address]) -> list[str]:
    """Return the listings of all: those of usual addresses at once."""
    together = "\n".join(["", *addresses])
    lowered = together.lower()
    if together.isascii() and not any(odd in lowered for odd in _ODD):
        found = lowered.split("\n")[1:]
        if len(found) == len(addresses):
            return found  # what follows says the same of each
    return [spelling for address in addresses for spelling in listings(address)]


def same_recipient(address: Address) -> tuple[str, str]:
    """Return a key equal for two spellings of one mailbox: only the domain is without case (RFC 5321, 2.4)."""
    local, _, domain = address.rpartition("@")
    if local.startswith('"') and local.endswith('"') and len(local) > 1:
        local = _without_needless_quotes(local[1:-1])
    return local, normal_domain(domain) or domain.lower()


def _without_needless_quotes(content: str) -> str:
    """Return a local part that stood in quotes in the one spelling that we have for it."""
    plain = _ESCAPED.sub(r"\1", content)
    return plain if _ATOMS_AND_DOTS.fullmatch(plain) else '"' + re.sub(r'(["\\])', r"\\\1", plain) + '"'


def envelope_address(argument: str) -> Address | None:
    """Read a RCPT argument as Postfix hands it over; None where it is no mailbox.

    What another server would read as some other address is none: comments, a trailing dot, an unquoted backslash, an
    encoded word. One mailbox has one spelling, so that a list of addresses cannot be got around: no route, no quotes
    without need.
    """
    bare = argument[1:-1] if argument.startswith("<") and argument.endswith(">") else argument
    if len(bare) > MAX_ADDRESS_OCTETS:
        return None
    if _USUAL_ADDRESS.fullmatch(bare):  # what follows says the same of it
        return Address(bare)
    match = _MAILBOX.fullmatch(bare)
    if not match or _UNWRITABLE.search(bare):
        return None
    local, in_quotes, domain = match.groups()
    if local is None:
        local = _without_needless_quotes(in_quotes)
    if undone(local) != local:
        return None
    found = mapped(Address(f"{local}@{domain}"))
    return found if found and len(found.encode()) <= MAX_ADDRESS_OCTETS else None


def envelope_addresses(arguments: Sequence[bytes]) -> tuple[tuple[Address, ...], str | None]:
    """Read RCPT arguments, each mailbox once in the first of its spellings; and the last that is none, as it came."""
    said = b"\n".join(arguments).decode("utf-8", "replace")
    usual: list[Address] = _USUAL_RECIPIENT.findall(said)
    if len(usual) == len(arguments) == said.count("\n") + 1 and max(map(len, usual)) <= MAX_ADDRESS_OCTETS:
        return tuple(dict.fromkeys(usual)), None  # what follows says the same of them
    found: dict[tuple[str, str], Address] = {}
    bad = None
    for argument in arguments:
        text = argument.decode("utf-8", "replace")
        address = envelope_address(text)
        if address is None:
            bad = text
        else:
            found.setdefault(same_recipient(address), address)
    return tuple(found.values()), bad
