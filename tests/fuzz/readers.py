"""The readers of mail and of requests, and what must hold of each: few lines, little memory, texts that can be sent."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime

from opensend_milter.core import row
from opensend_milter.core.address import (
    MAX_ADDRESS_OCTETS,
    NotAnAddressListError,
    all_listings,
    envelope_address,
    envelope_addresses,
    folded,
    listings,
    normal_domain,
    parse_addresses,
    parse_some_addresses,
    same_recipient,
    spellings,
    unicode_domain,
)
from opensend_milter.core.attachments import Dialect
from opensend_milter.core.budget import Budget
from opensend_milter.core.dsn import reports
from opensend_milter.core.feedback import MOST_CHARACTERS, MOST_RECIPIENTS, Report, payload
from opensend_milter.core.fields import MOST_ERRORS, FieldError
from opensend_milter.core.identity import identify, row_digest
from opensend_milter.core.links import Links
from opensend_milter.core.message import read
from opensend_milter.core.misleading import misleading
from opensend_milter.core.model import Address, EmailId, Limits, Mailbox, Reading, Refuse, Route
from opensend_milter.core.request import RequestLimits, SendRequest, parse_json, read_send
from opensend_milter.core.rules import Rule
from opensend_milter.core.signing import derived
from opensend_milter.core.tracking import dress
from opensend_milter.core.words import decode_words
from opensend_milter.core.writing import envelope, write
from tests.fuzz.measures import (
    LINES_AN_OCTET,
    LINES_OF_ANY,
    MOST_COUNTED,
    TooMuchError,
    counted,
    in_little_memory,
    sound,
)
from tests.jobs import job
from tests.linear import lines_run
from tests.unit.messages import message

LINES_A_STEP = 30
_LIMITS = Limits(max_parts=200, max_depth=20)
_ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
_SENDER = Mailbox("", Address("app@sandbox.test"))
_JOB = job(route=Route(track_opens=True, track_clicks=True, one_click=True))
_LINKS = Links(key=derived(bytes(32), "link"), public_url="https://mail.example.com")
_DATE = datetime(2026, 1, 2, tzinfo=UTC)


# ---------------------------------------------------------------------- addresses


def addresses(octets: bytes) -> float:
    """Read the value of a To field."""
    value = octets.decode("utf-8", "replace")
    return counted(octets, lambda: _read_addresses(value))


def _read_addresses(value: str) -> None:
    found = parse_some_addresses(value, at_most=100, budget=Budget.of(len(value) * 10))
    try:
        strictly = parse_addresses(value, at_most=100)
    except NotAnAddressListError as error:
        sound([str(error)])
    else:
        assert found == strictly
    assert len(found) <= 100
    for mailbox in found:
        local, domain = same_recipient(mailbox.address)
        sound([mailbox.name, mailbox.address, local, domain])
        sound([*spellings(mailbox.address), *listings(mailbox.address)])
        assert folded(Address(folded(mailbox.address))) == folded(mailbox.address)
        sound([misleading(value, mailbox.address) or ""])
    name = normal_domain(value)
    if name is not None:
        assert normal_domain(name) == name
        sound([name, unicode_domain(name)])
    bare = envelope_address(value)
    together = envelope_addresses([value.encode("utf-8", "replace")])
    assert together == ((), value) if bare is None else together == ((bare,), None)
    if bare is not None:
        assert len(bare.encode()) <= MAX_ADDRESS_OCTETS
        assert envelope_address(bare) == bare
        assert all_listings([bare, bare]) == [*listings(bare), *listings(bare)]
    sound([decode_words(value)])


# ---------------------------------------------------------------------- messages


def mime(octets: bytes) -> float:
    """Read a message as one that is handed in, and put links into it."""
    budget = Budget.of(len(octets))
    with in_little_memory(octets):
        found = read(octets, _LIMITS, budget)
        if isinstance(found, Reading):
            _look_at(octets, found)
            dress(octets, _JOB, _LINKS)
    if isinstance(found, Refuse):
        assert 500 <= found.code < 600, found
        sound([found.text])
    assert budget.used <= budget.steps or (isinstance(found, Refuse) and found.rule is Rule.BEYOND_LIMITS)
    if len(octets) <= MOST_COUNTED:
        again = Budget.of(len(octets))
        lines = lines_run(lambda: read(octets, _LIMITS, again))
        assert again.used == budget.used, "the same message costs the same"
        if lines > LINES_A_STEP * budget.used + LINES_OF_ANY:
            raise TooMuchError(f"{lines} lines for {budget.used} steps")
        lines = lines_run(lambda: dress(octets, _JOB, _LINKS))
        if lines > LINES_AN_OCTET * len(octets) + LINES_OF_ANY:
            raise TooMuchError(f"{lines} lines for {len(octets)} octets with links")
    return budget.used / budget.steps


def _look_at(octets: bytes, found: Reading) -> None:
    """Do with it what storing it does."""
    handed_in = message(octets)
    identify(handed_in, found)
    row_digest(handed_in, found)
    row.recipients(handed_in.envelope.recipients, found)
    headers = row.headers(found)
    assert len(found.attachments) <= _LIMITS.max_parts
    assert len(found.fields) <= _LIMITS.max_header_fields
    assert len(found.text.encode()) + len(found.html.encode()) <= 3 * len(octets) + 1_000
    sound([row.sender(found.sender), row.text(found), *headers.kept.values(), *headers.left_out, *_texts_of(found)])
    for attachment in found.attachments:
        written = b"".join(attachment.content.pieces())
        assert b64decode(written, validate=False) is not None
        assert attachment.content.letters == len(written.translate(None, b"\r\n"))
        assert "\r" not in attachment.filename


def _texts_of(found: Reading) -> Iterator[str]:
    yield from (found.subject, found.message_id or "", found.wishes.idempotency_key or "")
    for mailbox in (found.sender, *found.to, *found.cc, *found.reply_to):
        yield from (mailbox.name, mailbox.address)
    for pair in (*found.fields, *found.wishes.tags, *found.wishes.metadata.items()):
        yield from pair
    for attachment in found.attachments:
        yield from (attachment.filename, attachment.content_type, attachment.content_id or "")


# ---------------------------------------------------------------------- reports by mail


def dsn(octets: bytes) -> float:
    """Read what came to a return path."""
    return counted(octets, lambda: _read_reports(octets))


def _read_reports(octets: bytes) -> None:
    found = reports(octets, _ID)
    assert len(found) <= MOST_RECIPIENTS + 1
    for report in found:
        look_at_report(report)


def look_at_report(report: Report) -> None:
    """See that it can be stored."""
    said = [report.source_id, report.at, *report.details.values()]
    for recipient in report.recipients:
        said += [*recipient.names, recipient.status, recipient.diagnostic]
    sound(said)
    assert max(map(len, said)) <= MOST_CHARACTERS
    payload(report)


# ---------------------------------------------------------------------- requests


def http(octets: bytes) -> float:
    """Read what was posted, in both dialects; what is good is written and read back."""
    return counted(octets, lambda: _read_request(octets))


def _read_request(octets: bytes) -> None:
    found = parse_json(octets)
    if isinstance(found, FieldError):
        sound([found.message])
        return
    dialects: tuple[Dialect, ...] = ("rele", "resend")
    for dialect in dialects:
        request = read_send(found, dialect, RequestLimits())
        if isinstance(request, SendRequest):
            _write(octets, request)
        else:
            assert 0 < len(request) <= MOST_ERRORS
            sound(text for error in request for text in (error.field, error.message))


def _write(octets: bytes, request: SendRequest) -> None:
    """Write the message and read it as one that came over SMTP: what was asked for is in it."""
    written = write(request, sender=request.sender or _SENDER, message_id="<1@example.org>", date=_DATE)
    assert len(written) <= 12 * len(octets) + 10_000
    found = read(written, Limits())
    assert isinstance(found, Reading), found
    assert found.subject.split() == request.subject.split()
    assert len(found.attachments) >= len(request.attachments)
    sound(envelope(request))
