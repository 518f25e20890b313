"""What a sender's domain should have in DNS: proof of its owner, SPF, DKIM, DMARC; judged from what DNS answers."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from opensend_milter.core.errors import TemporaryError

RecordKind = Literal["ownership", "spf", "dkim", "dmarc"]

OWNER_LABEL = "_opensend-milter"
OWNER_PREFIX = "opensend-milter="
RESERVED = ("test", "example", "invalid", "localhost", "local")
"""Never in DNS (RFC 2606, RFC 6762)."""
MOST_LOOKUPS = 10
"""RFC 7208, 4.6.4."""
LEAST_KEY_BYTES = 128
"""RFC 8301: RSA of 1,024 bits at least."""
SES_KEYS = "dkim.amazonses.com"
_ANY_SES_KEYS = r"dkim\.([a-z0-9-]+\.)?amazonses\.com"
"""Some regions of Amazon SES have a zone of their own."""
_TOKEN_BYTES = 20
_LOOKUP = re.compile(r"[+?~-]?(include:|a($|[:/])|mx($|[:/])|ptr($|:)|exists:|redirect=)", re.IGNORECASE)


class Unanswered(TemporaryError):  # noqa: N818  # the tree reads as mail says it
    """DNS does not answer."""


class Resolver(Protocol):
    """How DNS is asked. Raises Unanswered where the answer is unknown."""

    def texts(self, name: str) -> list[str]:
        """Return the TXT records of a name, each with its strings joined; none where the name does not exist."""
        ...

    def alias(self, name: str) -> str:
        """Return what a name is another name of (CNAME); empty: of none."""
        ...

    def exists(self, name: str) -> bool:
        """Tell whether a name exists, or one below it (RFC 8020)."""
        ...


class RecordState(Enum):
    """How a record stands."""

    FOUND = "found"
    MISSING = "missing"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """DNS did not answer, or cannot be asked for it."""
    NOT_NEEDED = "not needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record, as it stands and as it should be."""

    kind: RecordKind
    name: str
    state: RecordState
    seen: str
    line: str = ""
    """To be added to the zone; empty: nothing is to be added."""

    @property
    def is_needed(self) -> bool:
        """Mail of this domain suffers without it."""
        return self.state is not RecordState.NOT_NEEDED


@dataclass(frozen=True, slots=True)
class Unasked:
    """A kind of record that DNS is not asked for, and why."""

    why: str
    state: Literal[RecordState.NOT_NEEDED, RecordState.UNKNOWN] = RecordState.NOT_NEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Where a domain's DKIM keys are."""

    advice: str
    """What to do where there is none."""
    tokens: Sequence[str] = ()
    """Of Amazon SES, which keeps the keys: the domain has a CNAME for each."""
    selectors: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SesIdentity:
    """What a domain's row holds of Amazon SES."""

    tokens: Sequence[str] = ()
    selector: str = ""
    """Of a key that SES was given, instead of its own."""
    return_path: str = ""
    """The name that SES was given for it, or its first label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a domain's records are to say."""

    domain: str
    ownership: str | Unasked
    """The token of the ownership record."""
    envelope_domain: str
    """Of the return path: SPF is about that one."""
    spf: str | Unasked
    """The mechanism that names who sends, such as include:amazonses.com."""
    dkim: Keys | Unasked
    dmarc: Unasked | None = None


def ownership_token(key: bytes) -> str:
    """Spell what proves that a domain is a user's: no other user's, and of no other installation."""
    return base64.b32encode(key[:_TOKEN_BYTES]).decode().rstrip("=").lower()


def is_reserved(domain: str) -> bool:
    """Tell whether a domain can be in no public DNS."""
    return domain.rpartition(".")[2] in RESERVED


def records(resolver: Resolver, wanted: Wanted) -> list[Record]:
    """Ask for all four kinds, ownership first."""
    return [ownership(resolver, wanted), spf(resolver, wanted), *dkim(resolver, wanted), dmarc(resolver, wanted)]


def ownership(resolver: Resolver, wanted: Wanted) -> Record:
    """Look for the record that only this user was told."""
    name = f"{OWNER_LABEL}.{wanted.domain}"
    if isinstance(wanted.ownership, Unasked):
        return _unasked("ownership", name, wanted.ownership)
    value = OWNER_PREFIX + wanted.ownership
    line = _line(name, value)
    try:
        found = [text.strip() for text in resolver.texts(name)]
    except Unanswered as error:
        return _unknown("ownership", name, error, line)
    if any(text.lower() == value for text in found):
        return Record(kind="ownership", name=name, state=RecordState.FOUND, seen=value)
    if found:
        seen = f"{len(found)} record(s), none of them this user's"
        return Record(kind="ownership", name=name, state=RecordState.WRONG, seen=seen, line=line)
    return Record(kind="ownership", name=name, state=RecordState.MISSING, seen="no such record", line=line)


def spf(resolver: Resolver, wanted: Wanted) -> Record:
    """Judge the SPF record of the return path's domain (RFC 7208)."""
    name, mechanism = wanted.envelope_domain, wanted.spf
    if isinstance(mechanism, Unasked):
        return _unasked("spf", name, mechanism)
    line = _line(name, f"v=spf1 {mechanism} ~all")
    try:
        found = [text for text in resolver.texts(name) if re.match(r"v=spf1(\s|$)", text, re.IGNORECASE)]
    except Unanswered as error:
        return _unknown("spf", name, error, line)

    if not found:
        return Record(kind="spf", name=name, state=RecordState.MISSING, seen="no SPF record", line=line)
    fault, mended = next(_spf_faults(found, mechanism), ("", ""))
    return Record(
        kind="spf",
        name=name,
        state=RecordState.WRONG if fault else RecordState.FOUND,
        seen=fault or found[0],
        line=_line(name, mended) if mended else "",
    )


def _spf_faults(found: Sequence[str], mechanism: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, each with the record that would be right where that can be told."""
    if len(found) > 1:
        yield f"{len(found)} SPF records, which count as none: keep one", ""
    version, *terms = found[0].split()
    lowered = [term.lower() for term in terms]
    if {"all", "+all"} & set(lowered):
        yield f"{found[0]}: lets anybody send", f"{version} {mechanism} ~all"
    lookups = sum(bool(_LOOKUP.match(term)) for term in terms)
    if lookups > MOST_LOOKUPS:
        yield f"{lookups} terms that ask DNS, and {MOST_LOOKUPS} are allowed", ""
    names_ours = any(mechanism in term or term.startswith("redirect=") for term in lowered)
    if mechanism.startswith("include:") and not names_ours:
        yield f"{found[0]}: does not name {mechanism}", " ".join([version, mechanism, *terms])


def dkim(resolver: Resolver, wanted: Wanted) -> list[Record]:
    """Judge the keys, or, where it is not known which there are, whether there can be any (RFC 6376)."""
    folder = f"_domainkey.{wanted.domain}"
    keys = wanted.dkim
    if isinstance(keys, Unasked):
        return [_unasked("dkim", folder, keys)]
    found = [_key_of_ses(resolver, token, folder) for token in keys.tokens]
    if keys.selectors or not keys.tokens:
        found.append(_selected_keys(resolver, keys, folder))
    return found


def _key_of_ses(resolver: Resolver, token: str, folder: str) -> Record:
    """Judge one CNAME: only by it does the domain have the key that SES signs with, also after SES has changed it."""
    name, target = f"{token}.{folder}", f"{token}.{SES_KEYS}"
    line = f"{name}. IN CNAME {target}."
    try:
        alias, fault = resolver.alias(name), key_fault(resolver.texts(name))
    except Unanswered as error:
        return _unknown("dkim", name, error, line)
    if not alias and fault == _NO_KEY:
        return Record(kind="dkim", name=name, state=RecordState.MISSING, seen=f"no CNAME at {token}", line=line)
    if not alias:
        return Record(kind="dkim", name=name, state=RecordState.WRONG, seen=f"a TXT, no CNAME, at {token}", line=line)
    if not re.fullmatch(rf"{re.escape(token.lower())}\.{_ANY_SES_KEYS}", alias):
        return Record(kind="dkim", name=name, state=RecordState.WRONG, seen=f"CNAME to {alias}", line=line)
    if fault:
        return Record(kind="dkim", name=name, state=RecordState.WRONG, seen=f"{fault} behind the CNAME {token}")
    return Record(kind="dkim", name=name, state=RecordState.FOUND, seen=f"key of {token}")


def _selected_keys(resolver: Resolver, keys: Keys, folder: str) -> Record:
    try:
        if not keys.selectors:
            if resolver.exists(folder):
                seen = "there are selectors; name those in use with --selector to have them judged"
                return Record(kind="dkim", name=folder, state=RecordState.FOUND, seen=seen)
            return Record(kind="dkim", name=folder, state=RecordState.MISSING, seen=f"no selector; {keys.advice}")
        for selector in keys.selectors:
            name = f"{selector}.{folder}"
            fault = key_fault(resolver.texts(name))
            if fault == _NO_KEY:
                seen = f"{fault} at {selector}; {keys.advice}"
                return Record(kind="dkim", name=name, state=RecordState.MISSING, seen=seen)
            if fault:
                return Record(kind="dkim", name=name, state=RecordState.WRONG, seen=f"{fault}, at {selector}")
    except Unanswered as error:
        return _unknown("dkim", folder, error, "")
    return Record(kind="dkim", name=folder, state=RecordState.FOUND, seen=f"keys of {', '.join(keys.selectors)}")


_NO_KEY = "no key"


def key_fault(found: Sequence[str]) -> str:
    """Return what is wrong with a selector's key record, or nothing."""
    keys = [tags for text in found if "p" in (tags := _tags(text))]
    if not keys:
        return _NO_KEY
    if len(keys) > 1:
        return f"{len(keys)} keys at one selector, of which any may be taken"
    return next(_key_faults(keys[0]), "")


def _key_faults(tags: Mapping[str, str]) -> Iterator[str]:
    if tags.get("v", "DKIM1") != "DKIM1":
        yield f"v={tags['v']} is not DKIM1"
    if not tags["p"]:
        yield "the key is revoked (p= is empty)"
    try:
        key = base64.b64decode("".join(tags["p"].split()), validate=True)
    except (ValueError, binascii.Error):
        yield "p= is no base64"
        return
    if tags.get("k", "rsa") == "rsa" and len(key) < LEAST_KEY_BYTES:
        yield "the RSA key is shorter than 1,024 bits"


def dmarc(resolver: Resolver, wanted: Wanted) -> Record:
    """Judge the policy of the domain or of the nearest parent that has one (RFC 7489)."""
    first = f"_dmarc.{wanted.domain}"
    if wanted.dmarc:
        return _unasked("dmarc", first, wanted.dmarc)
    line = _line(first, f"v=DMARC1; p=none; rua=mailto:postmaster@{wanted.domain}")
    labels = wanted.domain.split(".")
    for start in range(max(len(labels) - 1, 1)):
        name = "_dmarc." + ".".join(labels[start:])
        try:
            found = [text for text in resolver.texts(name) if re.match(r"v\s*=\s*DMARC1\s*(;|$)", text)]
        except Unanswered as error:
            return _unknown("dmarc", name, error, line)
        if len(found) > 1:
            seen = f"{len(found)} DMARC records, which count as none: keep one"
            return Record(kind="dmarc", name=name, state=RecordState.WRONG, seen=seen)
        if found:
            policy = _tags(found[0]).get("p", "").lower()
            if policy not in {"none", "quarantine", "reject"}:
                return Record(
                    kind="dmarc", name=name, state=RecordState.WRONG, seen=f"{found[0]}: no policy p=", line=line
                )
            return Record(kind="dmarc", name=name, state=RecordState.FOUND, seen=found[0])
    return Record(kind="dmarc", name=first, state=RecordState.MISSING, seen="no DMARC record", line=line)


def _tags(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}


def _line(name: str, value: str) -> str:
    return f'{name}. IN TXT "{value}"'


def _unasked(kind: RecordKind, name: str, record: Unasked) -> Record:
    return Record(kind=kind, name=name, state=record.state, seen=record.why)


def _unknown(kind: RecordKind, name: str, error: Unanswered, line: str) -> Record:
    return Record(kind=kind, name=name, state=RecordState.UNKNOWN, seen=str(error), line=line)
