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
from opensend_milter.core.terms import Known, names, readable, ways

SQL = statements("search")
REACH = 100_000
"""Messages and their addresses that are looked at for one answer, and as many of refusals; how far that was is said."""
PAGE = 100
_MOST_NAMED = 1_000
_LEAST_ID = "00000000-0000-0000-0000-000000000000"
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
    values = _values(filters or Filters(), scope, limit, before)
    text = readable(asked or "")
    meant = ways(text)
    hits = {(hit.kind, hit.id): hit for hit in _named(connection, text, values)}
    ends: list[datetime] = []
    if (meant or not text) and not email_of_request(text):
        for search in _searches(connection, values):
            known, end = search.newest(lambda one: not meant or any(way <= names(one) for way in meant), limit, reach)
            hits |= {(hit.kind, hit.id): hit for hit in known}
            ends += [end] if end else []
    found = sorted(hits.values(), key=_order, reverse=True)
    return Hits(rows=found[:limit], more=len(found) > limit, searched_back_to=max(ends, default=None))


def named(connection: Connection, asked: str, scope: Scope) -> list[Hit]:
    """Find what is known by an id, or as nearly as one: by index, however many there are."""
    return [*_named(connection, readable(asked), _values(Filters(), scope, 1, None))]


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

    def newest(self, is_meant: Callable[[Known], bool], limit: int, reach: int) -> tuple[list[Hit], datetime | None]:
        """Return more than `limit` where there are so many; and the time beyond which nobody looked, if there is."""
        found: list[Hit] = []
        place = {name: self.values[name] for name in ("before", "before_id", "before_no")}
        while True:
            rows = self.connection.execute(SQL[self.page], {**self.values, **place, "limit": PAGE}).fetchall()
            ids: list[object] = []
            for row in rows:
                known = self.known(row)
                # Each address costs as much as all the rest.
                reach -= 1 + len(known.addresses)
                ids += [row[0]] if is_meant(known) else []
            if ids:
                answer = self.connection.execute(SQL[self.shown], {**self.values, "ids": ids})
                found += map(self.hit, answer.fetchall())
            if len(rows) < PAGE or len(found) > limit:
                return found, None
            last, at = rows[-1][:2]
            if reach <= 0:
                return found, at
            place = {"before": at, "before_id": last, "before_no": last}


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
        "most_named": _MOST_NAMED,
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
