"""Files of suppressed addresses: ours and those of other services, read line by line."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from opensend_milter.core.address import envelope_address
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import Address

Reason = Literal["manual", "bounced", "complained"]
FormatName = Literal["opensend-milter", "postmark", "sendgrid", "ses", "addresses"]

HEADER = ("address", "reason", "since")
"""Of our own files."""
SHOWN_CHARACTERS = 60
MOST_LINES = 50
"""Of one record."""
_REASONS: Mapping[str, Reason] = {
    "manual": "manual",
    "bounced": "bounced",
    "complained": "complained",
    "hardbounce": "bounced",
    "spamcomplaint": "complained",
    "manualsuppression": "manual",
    "bounce": "bounced",
    "complaint": "complained",
}
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """One suppressed address."""

    line: int
    address: Address
    reason: Reason
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that cannot be read, and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column holds what."""

    name: FormatName
    address: int
    reason: int | None
    since: int | None
    otherwise: Reason = "manual"
    """Where there is no column for the reason."""


def read(content: Iterable[bytes], reason: Reason | None) -> tuple[FormatName, Iterator[Entry | Bad]]:
    """Recognise a file by its beginning and read it; `reason` is put in place of what the file says."""
    lines = enumerate(content, start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, b""))
    if not number:
        raise UsageError("the file is empty")
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    everything = itertools.chain([(number, text)], lines)
    if text.startswith((b"{", b"[")):
        return "ses", _read_json(everything, reason)
    columns = _columns(next(csv.reader([text.decode("utf-8", errors="replace")]), []))
    if columns is None:
        shown = text.decode("utf-8", errors="replace").strip()[:SHOWN_CHARACTERS]
        raise UsageError(
            f"line {number}: {shown!r} is neither a header of Postmark, SendGrid, SES or ours (address,reason,since) "
            "nor an address"
        )
    has_header = columns.name not in _HEADLESS or _address(text.decode("utf-8", errors="replace").split(",")[0]) is None
    return columns.name, _read_rows(lines if has_header else everything, columns, reason)


_HEADLESS = {"ses", "addresses"}


def _columns(header: Sequence[str]) -> _Columns | None:
    names = {_word(name): place for place, name in enumerate(header)}
    for name, address, reason, since in _HEADERS:
        if {address, reason} <= names.keys():
            return _Columns(name, names[address], names[reason], names.get(since))
    if {"email", "created"} <= names.keys():
        # Spam reports have the column ip, bounces and invalid addresses a text why, unsubscribes neither.
        kind: Reason = "complained" if "ip" in names else "bounced" if "reason" in names else "manual"
        return _Columns("sendgrid", names["email"], None, names["created"], kind)
    if not header or _address(header[0]) is None:
        return None
    if len(header) == 1:
        return _Columns("addresses", 0, None, None)
    return _Columns("ses", 0, 1, None) if _word(header[1]) in _REASONS else None


_HEADERS: Sequence[tuple[FormatName, str, str, str]] = (
    ("opensend-milter", "address", "reason", "since"),
    ("postmark", "emailaddress", "suppressionreason", "createdat"),
    ("ses", "emailaddress", "reason", "lastupdatetime"),
)
"""Each service's names of address, reason and time, without case, spaces and underscores."""


def _read_rows(
    numbered: Iterable[tuple[int, bytes]], columns: _Columns, reason: Reason | None
) -> Iterator[Entry | Bad]:
    for number, line in _records(numbered):
        try:
            text = line.decode("utf-8")
            (row,) = csv.reader([text], strict=True) if text.strip() else ((),)
        except UnicodeDecodeError:
            yield Bad(number, "is not UTF-8")
            continue
        except (csv.Error, ValueError) as error:
            yield Bad(number, f"is no line of a CSV file: {error}")
            continue
        if not row:
            continue
        given = {"address": columns.address, "reason": columns.reason, "since": columns.since}
        fields = {name: row[place] for name, place in given.items() if place is not None and place < len(row)}
        yield _entry(number, fields, columns.otherwise if columns.reason is None else None, reason)


def _records(numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Join the lines of a record whose quoted text has line breaks in it, such as a bounce's.

    A quote that is never closed costs its own line only, not all that follow.
    """
    lines = iter(numbered)
    ahead: deque[tuple[int, bytes]] = deque()
    while ahead or (ahead := deque(itertools.islice(lines, 1))):
        began, record = ahead.popleft()
        taken: list[tuple[int, bytes]] = []
        while record.count(b'"') % 2 and len(taken) < MOST_LINES:
            more = ahead.popleft() if ahead else next(lines, None)
            if more is None:
                break
            taken.append(more)
            record += more[1]
        if record.count(b'"') % 2:
            ahead.extendleft(reversed(taken))
            record = record.partition(b"\n")[0]
        yield began, record.replace(b"\r", b" ").replace(b"\n", b" ")


def _read_json(numbered: Iterable[tuple[int, bytes]], reason: Reason | None) -> Iterator[Entry | Bad]:
    """Read one object a line, or one document: SES's list, as `list-suppressed-destinations` prints it."""
    listed = list(numbered)
    try:
        objects = [(number, json.loads(line)) for number, line in listed if line.strip()]
    except (ValueError, RecursionError):
        objects = _document(b"".join(line for _, line in listed))
    for number, one in objects:
        summaries = one.get("SuppressedDestinationSummaries") if isinstance(one, Mapping) else one
        if not isinstance(summaries, list):
            yield _object(number, one, reason)
            continue
        for place, summary in enumerate(summaries, start=1):
            # Of one document, the place in its list says more than the line.
            yield _object(place if len(objects) == 1 else number, summary, reason)


def _document(content: bytes) -> list[tuple[int, object]]:
    try:
        return [(0, json.loads(content))]
    except (ValueError, RecursionError) as error:
        raise UsageError("the file is neither one JSON document nor one JSON object a line") from error


def _object(number: int, one: object, reason: Reason | None) -> Entry | Bad:
    if not isinstance(one, Mapping):
        return Bad(number, "is no object")
    lowered = {str(name).lower(): value for name, value in one.items()}
    fields = {"address": lowered.get("emailaddress"), "reason": lowered.get("reason")}
    if "lastupdatetime" in lowered:
        fields["since"] = lowered["lastupdatetime"]
    return _entry(number, {name: "" if value is None else str(value) for name, value in fields.items()}, None, reason)


def _entry(number: int, fields: Mapping[str, str], otherwise: Reason | None, reason: Reason | None) -> Entry | Bad:
    given = fields.get("address", "")
    address = _address(given)
    if address is None:
        return Bad(number, f"{_shown(given)} is no address" if given.strip() else "has no address")
    found = reason or otherwise or _REASONS.get(_word(fields.get("reason", "")))
    if found is None:
        return Bad(number, f"{_shown(fields.get('reason', ''))} is no reason that is known")
    try:
        since = _moment(fields.get("since", ""))
    except (ValueError, OverflowError, OSError):
        return Bad(number, f"{_shown(fields['since'])} is no date")
    return Entry(number, address, found, since)


def _word(text: str) -> str:
    return text.strip().lower().replace(" ", "").replace("_", "")


def _shown(text: str) -> str:
    return repr(text.strip()[:SHOWN_CHARACTERS])


def _address(text: str) -> Address | None:
    address = envelope_address(text.strip())
    return Address(address.lower()) if address else None


def _moment(text: str) -> datetime | None:
    """Read seconds since 1970, or ISO 8601; a time without a zone is UTC."""
    text = text.strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        found = datetime.fromisoformat(text.removesuffix(" UTC"))
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
    else:
        if not math.isfinite(seconds):
            raise ValueError(text)
        found = datetime.fromtimestamp(seconds, UTC)
    if found < _EARLIEST:
        raise ValueError(text)
    return found


def sorted_out(
    found: Iterable[Entry | Bad], progress: Callable[[int], None]
) -> tuple[dict[str, Entry], list[Bad], list[Entry]]:
    """Return entries by address, bad lines, and the entries whose address stood in the file before."""
    entries: dict[str, Entry] = {}
    bad: list[Bad] = []
    again: list[Entry] = []
    for count, one in enumerate(found, start=1):
        if isinstance(one, Bad):
            bad.append(one)
        elif one.address in entries:
            again.append(one)
        else:
            entries[one.address] = one
        progress(count)
    return entries, bad, again
