"""Messages and refusals found by anything that one knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.address import normal_domain, unicode_domain
from opensend_milter.core.ids import range_of
from opensend_milter.core.lookup import EVERYTHING, REFUSED, Filters, Hit, Hits, Place, Scope
from opensend_milter.core.refs import read_ref
from opensend_milter.core.submission import email_of_request
from opensend_milter.core.terms import Known, Meant, Name, readable, term_of, ways

SQL = statements("search")
REACH = 100_000
"""Messages and their addresses that are looked at for one answer, of those that are not noted, and of those that are
noted under what is asked; and as many of refusals. How far that was is said."""
PAGE, MORE = 100, 500
"""Rows that are read at once: of the first page, and of those after it, where few are what is asked for."""
_NOTED = "noted"
_MOST_NAMED = 1_000
LEAST_ID = "00000000-0000-0000-0000-000000000000"
_GREATEST_NUMBER = 2**63 - 1


def find(
    connection: Connection,
    asked: str | None,
    filters: Filters | None = None,
    scope: Scope = EVERYTHING,
    *,
    limit: int = 50,
    before: Place | None = None,
    reach: int = REACH,
) -> Hits:
    """Find the newest that are known by what is asked, or the newest of all, which `filters` and `scope` let through.

    `asked` is an id or either end of it (the first 13 characters or more, or the last 12), a queue id, a request's id,
    a Message-ID, what a provider calls a message, an address, `@domain`, or words of a subject, all of them.
    """
    filters = filters or Filters()
    values = _values(filters, scope, limit, before)
    text = readable(asked or "")
    meant = ways(text)
    hits = {(hit.kind, hit.id): hit for hit in _named(connection, text, values)}
    ends: list[Place] = []
    noted_to = None
    if (meant or not text) and not email_of_request(text):
        for search in _searches(connection, values, meant, filters):
            known, end = search.newest(limit, reach)
            hits |= {(hit.kind, hit.id): hit for hit in known}
            ends += [end] if end else []
            noted_to = search.noted_to if end and search.noted_to else noted_to
    found = sorted(hits.values(), key=_order, reverse=True)
    further = max(ends, default=None, key=_standing)
    return Hits(rows=found[:limit], more=len(found) > limit, further=further, noted_to=noted_to)


def named(connection: Connection, asked: str, scope: Scope) -> list[Hit]:
    """Find what is known by an id, or as nearly as one: by index, however many there are."""
    return [*_named(connection, readable(asked), _values(Filters(), scope, 1, None))]


@dataclass(frozen=True, slots=True)
class _Search:
    """Goes through some, the newest first, page by page, until there are as many as are asked for."""

    connection: Connection
    values: Mapping[str, object]
    page: str
    """Statement that returns the next of them, by what each is known."""
    shown: str
    """Statement that returns what filters and scope let through."""
    known: Callable[[Sequence[Any]], Known]
    hit: Callable[[Sequence[Any]], Hit]
    meant: Meant | None
    """None: all of them."""
    noted_to: datetime | None = None
    """Those up to then are not among them, because they are noted."""

    def newest(self, limit: int, reach: int) -> tuple[list[Hit], Place | None]:
        """Return more than `limit` where there are so many; and the last that was looked at, if there are more."""
        found: list[Hit] = []
        # Where nearly all that comes is meant, more would be read for nothing.
        size = min(limit + 1, PAGE) if self.page == _NOTED or not self.meant else PAGE
        place = {name: self.values[name] for name in ("before", "before_id", "before_no")}
        while True:
            rows = self.connection.execute(SQL[self.page], {**self.values, **place, "limit": size}).fetchall()
            ids: list[object] = []
            for row in rows:
                if self.meant:
                    known = self.known(row)
                    # Each address costs as much as all the rest.
                    reach -= 1 + len(known.addresses)
                    if not self.meant.is_known_by(known):
                        continue
                else:
                    # As much as two cost the tables that filters look at.
                    reach -= 3
                ids.append(row[0])
            if ids:
                answer = self.connection.execute(SQL[self.shown], {**self.values, "ids": ids})
                found += map(self.hit, answer.fetchall())
            if len(rows) < size or len(found) > limit:
                return found, None
            size = max(size, MORE)
            last, at = rows[-1][:2]
            if reach <= 0:
                return found, Place(at, str(last))
            place = {"before": at, "before_id": last, "before_no": last}


def _searches(
    connection: Connection, values: Mapping[str, object], meant: Sequence[frozenset[Name]], filters: Filters
) -> Iterator[_Search]:
    """Return where it is looked for: where the filters can let anything through."""
    values, whose = _whose(connection, values)
    if not values["rule"] and values["status"] != REFUSED:
        yield from _searches_of_messages(connection, values, _within(meant, filters), whose)
    if not values["courier"] and values["status"] in (None, REFUSED):
        page = "newest_refusals" if values["of_user"] is None else "newest_refusals_of_user"
        of_refusals = [way for way in meant if all(map(_has_refusal, way))]
        if of_refusals or not meant:
            yield _Search(
                connection, values, page, "these_refusals", _known_refusal, _refusal, _looked_for(of_refusals)
            )


def _within(meant: Sequence[frozenset[Name]], filters: Filters) -> Sequence[frozenset[Name]]:
    """Return the names that are meant with that of the domain which the filter lets through."""
    if not filters.domain:
        return meant
    domain = Name("domain", _spellings(filters.domain)[0])
    return [way | {domain} for way in meant or (frozenset[Name](),)]


def _looked_for(ways: Sequence[frozenset[Name]]) -> Meant | None:
    return Meant(ways) if ways else None


def _has_refusal(name: Name) -> bool:
    """Tell whether a refusal can be known by this: it has no subject, and a mere word is nobody's Message-ID."""
    return name.kind in {"address", "domain"} or (name.kind == "message-id" and "@" in name.text)


def _whose(connection: Connection, values: Mapping[str, object]) -> tuple[dict[str, object], set[Name]]:
    """Return whose are looked at, and by what those are noted that the scope and the filter of a key let through."""
    names_of = {Name("key", str(values["key_id"]))} if values["key_id"] else set()
    user_id = values["user_id"]
    if values["reads_by"]:
        user_id, reads_all = connection.execute(SQL["reader"], values).fetchone() or (None, False)
        user_id = user_id or ""
        names_of |= set() if reads_all else {Name("key", str(values["reads_by"]))}
    names_of |= {Name("user", str(user_id))} if user_id else set()
    return {**values, "of_user": user_id}, names_of


def _searches_of_messages(
    connection: Connection, values: Mapping[str, object], meant: Sequence[frozenset[Name]], whose: set[Name]
) -> Iterator[_Search]:
    """Return those that are not noted yet, then those that are noted under all the names of one way."""

    def search(page: str, more: Mapping[str, object], ways: Sequence[frozenset[Name]], at: datetime | None) -> _Search:
        return _Search(connection, {**values, **more}, page, "these", known_by, _message, _looked_for(ways), at)

    # The list of all is read by index; and what was committed late is in it at once.
    ((noted_at, noted_id),) = connection.execute(SQL["noted_to"]) if meant else ((None, None),)
    page = "newest" if meant else "listed"
    page += "_of_user" if values["of_user"] is not None else ""
    yield search(page, {"noted_at": noted_at, "noted_id": noted_id}, meant, noted_at)
    for way in meant if noted_at else ():
        yield search(_NOTED, {"terms": [*map(term_of, way | whose)]}, [way], None)


def _order(hit: Hit) -> tuple[datetime, bool, str]:
    return _standing(hit.place)


def _standing(place: Place) -> tuple[datetime, bool, str]:
    """As the statements have it: at one instant messages come before refusals."""
    return place.at, not place.id.isdigit(), place.id.zfill(len(LEAST_ID))


def _values(filters: Filters, scope: Scope, limit: int, before: Place | None) -> dict[str, object]:
    return {
        "user_id": scope.user_id,
        "reads_by": scope.reads_by,
        "since": filters.since,
        "key_id": filters.key_id,
        "domains": _spellings(filters.domain) if filters.domain else None,
        "status": filters.status,
        "rule": filters.rule,
        "courier": filters.courier,
        "before": before and before.at,
        # At one instant messages come before refusals.
        "before_id": before and (LEAST_ID if before.id.isdigit() else before.id),
        "before_no": before and (int(before.id) if before.id.isdigit() else _GREATEST_NUMBER),
        "limit": limit + 1,
        "most_named": _MOST_NAMED,
    }


def _spellings(domain: str) -> list[str]:
    """Return both of a domain, the one that we have for it first."""
    name = normal_domain(domain.removeprefix("@")) or domain.lower()
    return [name, unicode_domain(name)]


def _named(connection: Connection, text: str, values: Mapping[str, object]) -> Iterator[Hit]:
    whole = email_of_request(text)
    first, last = range_of(text) or (whole, whole)
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < len(str(_GREATEST_NUMBER)) else None
    by = {
        "first": first,
        "last": last,
        "queue_id": text,
        "provider_id": text,
        "number": number,
        "ref": read_ref(text),
    }
    if not values["rule"] and values["status"] != REFUSED:
        for row in connection.execute(SQL["named"], {**values, **by}):
            yield _message(row)
    if not values["courier"] and values["status"] in (None, REFUSED):
        for row in connection.execute(SQL["named_refusals"], {**values, **by}):
            yield _refusal(row)


class MessageRow(NamedTuple):
    """What is shown of a message, and by what it is known."""

    id: str
    at: datetime
    status: str
    shown_sender: str
    from_address: str | None
    sender: str | None
    recipients: list[str] | None
    to: Any
    cc: Any
    bcc: Any
    dropped: list[dict[str, str]] | None
    subject: str
    message_id: str | None
    queue_id: str | None
    key_name: str | None

    @property
    def everybody(self) -> tuple[str, ...]:
        """Return all whom it was for."""
        shown = [one for some in (self.to, self.cc, self.bcc) if isinstance(some, list) for one in some]
        to = shown if self.recipients is None else self.recipients
        return (*map(str, to), *(one["email"] for one in self.dropped or ()))


class RefusalRow(NamedTuple):
    """What is shown of a refusal, and by what it is known."""

    id: str
    at: datetime
    rule: str
    sender: str
    recipients: list[str]
    message_id: str | None
    queue_id: str
    key_name: str | None
    ref: str | None


def _message(found: Sequence[Any]) -> Hit:
    row = MessageRow._make(found)
    return Hit(
        kind="message",
        id=row.id,
        at=row.at,
        status=row.status,
        sender=row.shown_sender,
        recipients=row.everybody,
        subject=row.subject,
        queue_id=row.queue_id,
        key_name=row.key_name,
    )


def _refusal(found: Sequence[Any]) -> Hit:
    row = RefusalRow._make(found)
    return Hit(
        kind="refusal",
        id=row.id,
        at=row.at,
        status=REFUSED,
        rule=row.rule,
        sender=row.sender,
        recipients=tuple(row.recipients),
        queue_id=row.queue_id,
        key_name=row.key_name,
        ref=row.ref,
    )


def known_by(row: Sequence[Any]) -> Known:
    """Read what `known` says of a message."""
    email_id, _, shown, from_address, sender, recipients, to, cc, bcc, dropped, subject, message_id, user_id, key = row
    # Columns of jsonb are OpenSend's, who may put there what it likes.
    listed = [str(one) for some in (to, cc, bcc) if isinstance(some, list) for one in some]
    everybody = [*(recipients or listed), *(one["email"] for one in dropped or ())]
    addresses = (shown or "", from_address or "", sender or "", *everybody)
    return Known(
        id=email_id,
        addresses=addresses,
        message_id=message_id,
        subject=subject or "",
        user_id=user_id,
        key_id=key,
    )


def _known_refusal(row: Sequence[Any]) -> Known:
    """Read what `newest_refusals` says of a refusal."""
    _, _, sender, recipients, message_id = row
    return Known(id=None, addresses=(sender, *recipients), message_id=message_id, subject="")
