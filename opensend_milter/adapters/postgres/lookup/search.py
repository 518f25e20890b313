"""Messages and refusals found by anything that one knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.address import normal_domain, unicode_domain
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.ids import range_of
from opensend_milter.core.model import KeyId, UserId
from opensend_milter.core.refs import read_ref
from opensend_milter.core.submission import email_of_request
from opensend_milter.core.terms import Known, names, readable, ways

SQL = statements("search")
REFUSED = "refused"
"""Status of what was not taken; besides, a status is an email's, or uncertain."""
EXAMINED = 20_000
"""Messages that are looked at for one answer, and refusals; what is left then is said."""
PAGE = 1_000
_LEAST_ID = "00000000-0000-0000-0000-000000000000"
_GREATEST_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is to be left out of an answer; None lets all through."""

    since: datetime | None = None
    key_id: KeyId | None = None
    domain: str | None = None
    """Of From; of a refusal, which has none, of the envelope's sender."""
    status: str | None = None
    rule: str | None = None
    """By what a message was refused: nothing but refusals then."""
    courier: CourierName | None = None
    """That has tried, or is set for the domain: nothing but messages then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What whoever asks may see: everything, what one user has, or what one key may read."""

    user_id: UserId | None = None
    reads_by: KeyId | None = None
    """Its own messages and refusals; with full access all of its user's."""


EVERYTHING = Scope()


class Place(NamedTuple):
    """Where in an answer one stands: the next page is what comes `before`."""

    at: datetime
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A message, or a refusal."""

    kind: Literal["message", "refusal"]
    id: str
    """Of the email, or the refusal's number."""
    at: datetime
    status: str
    """The email's, in OpenSend's words, `uncertain`, or `refused`."""
    rule: str | None = None
    sender: str
    """From, as it is shown; of a refusal the envelope's."""
    recipients: tuple[str, ...]
    """Of the envelope, hidden ones too, then those who were left out."""
    subject: str | None = None
    queue_id: str | None = None
    key_name: str | None = None
    """None: the key is gone, or it came by OpenSend's own REST API."""
    ref: str | None = None
    """By what a refusal is known to who got it."""

    @property
    def place(self) -> Place:
        """Return where the next page goes on."""
        return Place(self.at, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """An answer, newest first."""

    rows: list[Hit] = field(default_factory=list)
    more: bool = False
    """There are more than were asked for."""
    searched_back_to: datetime | None = None
    """What is older was not looked at, because there was too much; None: all was. A whole id finds what is older."""


def find(
    connection: Connection,
    asked: str | None,
    filters: Filters | None = None,
    scope: Scope = EVERYTHING,
    *,
    limit: int = 50,
    before: Place | None = None,
) -> Hits:
    """Find the newest that are known by what is asked, or the newest of all, which `filters` and `scope` let through.

    `asked` is an id or either end of it (the first 13 characters or more, or the last 12), a queue id, a request's id,
    a Message-ID, what a provider calls a message, an address, `@domain`, or words of a subject, all of them.
    """
    values = _values(filters or Filters(), scope, limit, before)
    text = readable(asked or "")
    meant = ways(text)
    hits: dict[tuple[str, str], Hit] = {(hit.kind, hit.id): hit for hit in _named(connection, text, values)}
    ends: list[datetime] = []
    if meant or not text:
        for search in _searches(connection, values):
            known, end = search.newest(lambda one: not meant or any(way <= names(one) for way in meant), limit)
            hits |= {(hit.kind, hit.id): hit for hit in known}
            ends += [end] if end else []
    found = sorted(hits.values(), key=_order, reverse=True)
    return Hits(rows=found[:limit], more=len(found) > limit, searched_back_to=max(ends, default=None))


@dataclass(frozen=True, slots=True)
class _Search:
    """Goes through the newest, page by page, until there are as many as are asked for."""

    connection: Connection
    values: Mapping[str, object]
    page: str
    """Statement that returns the next of them, by what each is known."""
    shown: str
    """Statement that returns what filters and scope let through."""
    known: Callable[[Sequence[Any]], Known]
    hit: Callable[[Sequence[Any]], Hit]

    def newest(self, is_meant: Callable[[Known], bool], limit: int) -> tuple[list[Hit], datetime | None]:
        """Return more than `limit` where there are so many; and the time beyond which nobody looked, if there is."""
        found: list[Hit] = []
        place = {name: self.values[name] for name in ("before", "before_id", "before_no")}
        for _ in range(0, EXAMINED, PAGE):
            rows = self.connection.execute(SQL[self.page], {**self.values, **place, "limit": PAGE}).fetchall()
            ids = [row[0] for row in rows if is_meant(self.known(row))]
            if ids:
                answer = self.connection.execute(SQL[self.shown], {**self.values, "ids": ids})
                found += map(self.hit, answer.fetchall())
            if len(rows) < PAGE or len(found) > limit:
                return found, None
            at = rows[-1][1]
            place = {"before": at, "before_id": rows[-1][0], "before_no": rows[-1][0]}
        return found, at


def _searches(connection: Connection, values: Mapping[str, object]) -> Iterator[_Search]:
    """Return where it is looked for: where the filters can let anything through."""
    if values["reads_by"]:
        ((of_user,),) = connection.execute(SQL["user_of"], values).fetchall()
        values = {**values, "of_user": of_user or ""}
    else:
        values = {**values, "of_user": values["user_id"]}
    if not values["rule"] and values["status"] != REFUSED:
        yield _Search(connection, values, "newest", "these", _known, lambda row: _message(MessageRow._make(row)))
    if not values["courier"] and values["status"] in (None, REFUSED):
        yield _Search(
            connection,
            values,
            "newest_refusals",
            "these_refusals",
            _known_refusal,
            lambda row: _refusal(RefusalRow._make(row)),
        )


def _order(hit: Hit) -> tuple[datetime, bool, str]:
    """As the statements have it: at one instant messages come before refusals."""
    return hit.at, hit.kind == "message", hit.id.zfill(len(_LEAST_ID))


def _values(filters: Filters, scope: Scope, limit: int, before: Place | None) -> dict[str, object]:
    return {
        "user_id": scope.user_id,
        "reads_by": scope.reads_by,
        "since": filters.since,
        "key_id": filters.key_id,
        "domains": _domains(filters.domain),
        "status": filters.status,
        "rule": filters.rule,
        "courier": filters.courier,
        "before": before and before.at,
        # At one instant messages come before refusals.
        "before_id": before and (_LEAST_ID if before.id.isdigit() else before.id),
        "before_no": before and (int(before.id) if before.id.isdigit() else _GREATEST_NUMBER),
        "limit": limit + 1,
        "examined": EXAMINED,
    }


def _domains(domain: str | None) -> list[str] | None:
    """Return both spellings of a domain."""
    if domain is None:
        return None
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
            yield _message(MessageRow._make(row))
    if not values["courier"] and values["status"] in (None, REFUSED):
        for row in connection.execute(SQL["named_refusals"], {**values, **by}):
            yield _refusal(RefusalRow._make(row))


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


def _message(row: MessageRow) -> Hit:
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


def _refusal(row: RefusalRow) -> Hit:
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


def _known(row: Sequence[Any]) -> Known:
    """Read what `newest` says of a message."""
    email_id, _, shown, from_address, sender, recipients, to, cc, bcc, dropped, subject, message_id = row
    # Columns of jsonb are OpenSend's, who may put there what it likes.
    listed = [str(one) for some in (to, cc, bcc) if isinstance(some, list) for one in some]
    everybody = [*(recipients or listed), *(one["email"] for one in dropped or ())]
    addresses = (shown, from_address or "", sender or "", *everybody)
    return Known(id=email_id, addresses=addresses, message_id=message_id, subject=subject)


def _known_refusal(row: Sequence[Any]) -> Known:
    """Read what `newest_refusals` says of a refusal."""
    _, _, sender, recipients, message_id = row
    return Known(id=None, addresses=(sender, *recipients), message_id=message_id, subject="")
