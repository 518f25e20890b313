"""Raw bytes -> header fields, bodies, attachments. Works on slices; never builds a message again.

Whatever a stranger sends, `read` returns, and soon: sizes and counts are bounded before anything is looked at closely,
each octet is gone over a fixed number of times, and what is done in loops is paid for from a budget. What a part
claims of itself (charset, encoding, boundary) is taken as mail clients take it, never as a promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from opensend_milter.core.address import (
    NotAnAddressListError,
    mapped,
    parse_addresses,
    parse_some_addresses,
    quoted,
    usual_mailbox,
)
from opensend_milter.core.budget import OCTETS_A_STEP, Budget, OverBudgetError
from opensend_milter.core.charsets import codec_of, decode, decode_pieces
from opensend_milter.core.control import BEGINNINGS, METADATA, ControlFieldError, Wishes, is_control, wishes
from opensend_milter.core.doubts import Doubts
from opensend_milter.core.early_end import early_end
from opensend_milter.core.mime import PartHeader, ending, part_header
from opensend_milter.core.misleading import misleading
from opensend_milter.core.model import Attachment, Limits, Mailbox, Reading, Refuse, refuse
from opensend_milter.core.rules import Rule
from opensend_milter.core.texts import Texts, TooMuchTextError, unflowed
from opensend_milter.core.transfer import PIECE_BYTES, Base64, Buffer, decoded, slices
from opensend_milter.core.words import decode_words

_FOLDS = (b"\r\n ", b"\r\n\t", b"\n ", b"\n\t")
_FIELD_END = re.compile(rb"\n(?![ \t])")
_HEADER_END = re.compile(rb"\n\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n")
_AFTER_BOUNDARY = re.compile(rb"(--)?[ \t]*+(?:\r?\n|\Z)")
_FIELD = re.compile(r"^([!-9;-~]++)[ \t]*+:([^\n]*+)", re.MULTILINE)
_NO_FIELD = re.compile(rb"(?![!-9;-~]++[ \t]*+:)[^ \t\r\n]")
_THEN_NO_FIELD = re.compile(rb"\n" + _NO_FIELD.pattern)
_KEPT_PARAMETERS = ("method", "smime-type", "charset")
_BLANKS = (b" ", b"\t")
_LINE_IN_HEADER = "a header with a line that is no field"
_CONTENT_ID = re.compile(r"[!-~]{1,255}")
_KIND = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}/[A-Za-z0-9!#$&^_.+-]{1,80}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}")
_SHOWN_LABEL = 40
_FIELD_BYTES = 54_000
"""Longest header field, folding included: Postfix cuts one at 60,000 without a word, at a line's end before that."""
MOST_HEADER_BYTES = 1_048_576
"""Of one header section, unless it is said otherwise."""
_LONGEST_FLOWED = 1_048_576
"""In letters; each of its lines is in memory by itself."""
_NO_VALUE = (None,)
"""Of a field that is not there."""
_STEPS_A_PART = 40
"""With a small header section."""
_SMALL_HEADER = 2_048
_STEPS_A_WORD = 3
_PASSES = 4
"""How often a body is gone over: decoded, measured, digested, written."""


class _RefusedError(Exception):
    def __init__(self, refusal: Refuse) -> None:
        self.refusal = refusal


class HeaderTooLongError(Exception):
    """A header section has no end where it must have one."""


def read(raw: Buffer, limits: Limits, budget: Budget | None = None) -> Reading | Refuse:
    """Read a message, or say why it cannot be taken.

    Raise OutOfTimeError where the budget has a deadline, and it is over.
    """
    try:
        return _read(raw, limits, budget or Budget.of(len(raw)))
    except _RefusedError as error:
        return error.refusal
    except OverBudgetError as error:
        text = f"it takes more work to read than any message of {len(raw)} octets needs (in its {error.where})"
        return _beyond(text).refusal


def header_fields(
    raw: Buffer, start: int, end: int, *, at_most: int = MOST_HEADER_BYTES, budget: Budget | None = None
) -> tuple[list[tuple[str, str]], int]:
    """Return the fields of a header section (lower-case name, value unfolded) and where the body begins.

    Each octet of a value is one letter, as in Latin-1. Raise HeaderTooLongError where it has more octets than that.
    """
    match = _EMPTY_LINE.match(raw, start, end) or _HEADER_END.search(raw, start, min(end, start + at_most + 3))
    if match is None and end - start > at_most:
        raise HeaderTooLongError
    head = bytes(raw[start : match.start() if match else end])
    body = match.end() if match else end
    if budget and len(head) > _SMALL_HEADER:
        budget.spend(head.count(b"\n"), "fields")
    for fold in _FOLDS:  # ten times as fast as one expression
        head = head.replace(fold, fold[-1:])
    # Of one text, not each by itself.
    found = _FIELD.findall(head.decode("latin-1"))
    return [(name.lower(), value.strip(" \t\r\n")) for name, value in found], body


def has_longer_line(raw: Buffer, octets: int) -> bool:
    """Tell whether a line, its CRLF included, is longer than that."""
    begin = 0
    while begin + octets <= len(raw):
        last = raw.rfind(b"\n", begin, begin + octets)
        if last < 0:
            return True
        begin = last + 1
    return False


def has_eight_bit(raw: Buffer) -> bool:
    """Tell whether an octet is beyond ASCII."""
    return not all(map(bytes.isascii, slices(raw, 0, len(raw))))


def _read(raw: Buffer, limits: Limits, budget: Budget) -> Reading:
    fields, body = _header(raw, 0, len(raw), limits, budget)
    if body > _FIELD_BYTES and max(map(len, _FIELD_END.split(bytes(raw[:body])))) > _FIELD_BYTES:
        raise _beyond(f"a header field over {_FIELD_BYTES} octets")
    text: list[str] = []
    html: list[str] = []
    attachments: list[Attachment] = []
    unknown: dict[str, None] = {}
    texts = Texts(limits.max_message_bytes)
    doubts = Doubts()
    for part in _leaves(raw, fields, body, limits, budget, doubts=doubts):
        if not part.is_body:
            attachments.append(part.attachment(len(attachments) + 1))
            continue
        label = part.header.parameters.get("charset", "").strip()
        taken = _taken(texts, part, label)
        if part.kind == "text/html":
            html.append(taken)
        else:
            text.append(_unflowed(taken, part.header, budget, doubts=doubts))
        if label and codec_of(label) is None:
            unknown[_one_line(label[:_SHOWN_LABEL])] = None
    unfolded = tuple([(name, value if value.isascii() else _text(value)) for name, value in fields])
    named: dict[str, list[str]] = {}
    for name, value in unfolded:
        named.setdefault(name, []).append(value)
    return Reading(
        sender=_only_sender(raw, named.get("from", ()), body, limits, budget),
        to=_mailboxes(named, "to", limits, budget),
        cc=_mailboxes(named, "cc", limits, budget),
        reply_to=_mailboxes(named, "reply-to", limits, budget),
        subject=_words(named.get("subject", _NO_VALUE)[0] or "", budget),
        message_id=named.get("message-id", _NO_VALUE)[0],
        fields=unfolded,
        wishes=_wishes(unfolded, budget),
        text="\r\n".join(text),
        html="\r\n".join(html),
        attachments=tuple(attachments),
        unknown_charsets=tuple(unknown),
        doubt=doubts.place,
    )


def _header(raw: Buffer, start: int, end: int, limits: Limits, budget: Budget) -> tuple[list[tuple[str, str]], int]:
    """Read a header section, that of the message or of a part in it."""
    try:
        fields, body = header_fields(raw, start, end, at_most=limits.max_header_bytes, budget=budget)
    except HeaderTooLongError:
        raise _beyond(f"header section over {limits.max_header_bytes} octets") from None
    if len(fields) > limits.max_header_fields:
        raise _beyond(f"more than {limits.max_header_fields} header fields")
    return fields, body


def _taken(texts: Texts, part: _Part, label: str) -> str:
    pieces = decoded(part.raw, part.start, part.end, part.header.encoding)
    is_small = part.end - part.start <= PIECE_BYTES
    try:
        return texts.take([decode(b"".join(pieces), label)] if is_small else decode_pieces(pieces, label))
    except TooMuchTextError as error:
        raise _beyond(str(error)) from None


def _unflowed(text: str, header: PartHeader, budget: Budget, *, doubts: Doubts) -> str:
    if header.parameters.get("format", "").lower() != "flowed" or len(text) > _LONGEST_FLOWED:
        return text
    budget.spend(text.count("\n"), "parts")
    doubts.weigh_lines(text)
    return unflowed(text, without_last_blank=header.parameters.get("delsp", "").lower() == "yes")


def _only_sender(raw: Buffer, values: Sequence[str], body: int, limits: Limits, budget: Budget) -> Mailbox:
    """Return the one address of the one From field: all that a reader of this mail can be shown."""
    if len(values) == 1 and (usual := usual_mailbox(values[0], budget)):
        return usual  # nothing of what follows can be said of it
    if not values and (why := early_end(raw, body, at_most=limits.max_header_bytes)):
        raise _no(Rule.FROM_MISSING, f"{why}; the From header field behind it counts as text")
    if not values:
        raise _no(Rule.FROM_MISSING, "the message has no From header field; add one")
    if len(values) > 1:
        raise _no(Rule.FROM_NOT_ONE, f"the message has {len(values)} From header fields; send exactly one")
    if "\x00" in values[0]:
        raise _no(Rule.FROM_MALFORMED, "the From header field holds a NUL character; remove it")
    try:
        found = parse_addresses(values[0], at_most=limits.max_addresses, plain=True, budget=budget)
    except NotAnAddressListError as error:
        raise _no(Rule.FROM_MALFORMED, f"the From header field is not one address ({error}); "
                                       "write it as: Name <user@domain>") from None  # fmt: skip
    if len(found) != 1:
        raise _no(Rule.FROM_NOT_ONE, f"the From header field holds {len(found)} addresses; it must hold exactly one")
    (sender,) = found
    if (said := quoted(sender.address)) != sender.address and said.rpartition("@")[0] not in values[0]:
        text = 'the From address has a dot where none may be; put quotes around the part before the @: ".name."@domain'
        raise _no(Rule.FROM_MALFORMED, text)
    _pay_for_words(values[0], budget)
    if why := misleading(values[0], sender.address):
        raise _no(Rule.FROM_MALFORMED, f"readers may take the From header field for something else: {why}")
    return Mailbox(sender.name, mapped(sender.address) or sender.address)


def _wishes(fields: tuple[tuple[str, str], ...], budget: Budget) -> Wishes:
    ours = [(name, value) for name, value in fields if name.startswith(BEGINNINGS) and is_control(name)]
    try:
        return wishes([(name, _words(value, budget) if name.startswith(METADATA) else value) for name, value in ours])
    except ControlFieldError as error:
        raise _RefusedError(refuse(Rule.CONTROL_FIELD, str(error))) from None


def _mailboxes(named: Mapping[str, Sequence[str]], name: str, limits: Limits, budget: Budget) -> tuple[Mailbox, ...]:
    found: list[Mailbox] = []
    for value in named.get(name, ()):
        if value.count(",") >= limits.max_addresses:
            raise _beyond(f"more than {limits.max_addresses} addresses in the header field {name.title()}")
        found += parse_some_addresses(value, at_most=limits.max_addresses, budget=budget)
    return tuple(found)


def _words(value: str, budget: Budget) -> str:
    _pay_for_words(value, budget)
    return decode_words(value)


def _pay_for_words(value: str, budget: Budget) -> None:
    if "=?" in value:
        budget.spend(_STEPS_A_WORD * value.count("=?") + value.count("=") // 3, "words")


def _text(value: str) -> str:
    """Raw UTF-8 in a header is legal mail (RFC 6532); what is not UTF-8 has no label either."""
    octets = value.encode("latin-1")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return decode(octets, "")


@dataclass(frozen=True, slots=True)
class _Part:
    raw: Buffer
    start: int
    end: int
    header: PartHeader
    kind: str
    filename: str | None

    @property
    def is_body(self) -> bool:
        return (
            self.kind in {"text/plain", "text/html"}
            and self.header.disposition != "attachment"
            and self.filename is None
        )

    def attachment(self, number: int) -> Attachment:
        return Attachment(
            filename=self.filename or self._default_name(number),
            content_type=self._content_type(),
            content_id=self.header.content_id if _CONTENT_ID.fullmatch(self.header.content_id) else None,
            content=Base64.of(self.raw, self.start, self.end, self.header.encoding),
        )

    def _content_type(self) -> str:
        """Keep the parameters without which a part is something else: an invitation, an S/MIME message."""
        found = ((name, self.header.parameters.get(name, "")) for name in _KEPT_PARAMETERS)
        # A part of type message must not be base64 (RFC 2046, 5.2), which is all that OpenSend's row has.
        fits = _KIND.fullmatch(self.kind) and not self.kind.startswith("message/")
        kind = self.kind if fits else "application/octet-stream"
        return kind + "".join(f"; {name}={value}" for name, value in found if _TOKEN.fullmatch(value))

    def _default_name(self, number: int) -> str:
        stem = "message" if self.kind in {"message/rfc822", "message/global"} else "attachment"
        return f"{stem}-{number}{ending(self.kind)}"


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()


def _leaves(
    raw: Buffer, fields: list[tuple[str, str]], body: int, limits: Limits, budget: Budget, *, doubts: Doubts
) -> Iterator[_Part]:
    """Walk the MIME tree in order, without recursion."""
    seen = 0
    if _NO_FIELD.match(raw):  # a part's first line has a line end before it
        doubts.note(_LINE_IN_HEADER)
    pending: list[tuple[int, int, int, str]] = [(0, len(raw), 0, "text/plain")]
    while pending:
        begin, end, depth, without_type = pending.pop()
        seen += 1
        if seen > limits.max_parts:
            raise _beyond(f"more than {limits.max_parts} MIME parts")
        if depth > limits.max_depth:
            raise _beyond(f"MIME parts nested more than {limits.max_depth} deep")
        if depth:
            fields, body = _header(raw, begin, end, limits, budget)
        if raw[begin : begin + 1] in _BLANKS:
            doubts.note("a header that begins with a blank")
        if _THEN_NO_FIELD.search(raw, max(begin - 1, 0), body):
            doubts.note(_LINE_IN_HEADER)
        of_content = [(name, _text(value)) for name, value in fields if name.startswith("content-")]
        header = part_header(of_content, budget, without_type=without_type)
        budget.spend(_STEPS_A_PART + _PASSES * (end - body) // OCTETS_A_STEP, "parts")
        kind = header.kind
        if kind.startswith("multipart/"):
            boundary = header.boundary
            doubts.weigh_multipart(header, boundary)
            splits = _spans(raw, body, end, boundary, budget, doubts=doubts) if boundary else ()
            spans = list(islice(splits, limits.max_parts))
            # RFC 2046, 5.1.5
            of_parts = "message/rfc822" if kind == "multipart/digest" else "text/plain"
            pending += [(*span, depth + 1, of_parts) for span in reversed(spans)]
            if spans:
                continue
            # As mail clients show what cannot be split.
            doubts.note("a multipart without parts")
            kind = "text/plain"
        part = _Part(raw, body, end, header, kind, _filename(header, budget))
        (doubts.weigh_body if part.is_body else doubts.weigh_file)(header)
        yield part


def _filename(header: PartHeader, budget: Budget) -> str | None:
    if not header.filename:
        return None
    name = _words(header.filename, budget)
    if "=?" in name:  # some encode it twice
        name = _words(name, budget)
    return _one_line(name)[-255:] or None


def _spans(
    raw: Buffer, start: int, end: int, boundary: str, budget: Budget, *, doubts: Doubts
) -> Iterator[tuple[int, int]]:
    """Find the parts of a multipart; the last may lack its closing line (RFC 2046, 5.1.1)."""
    delimiter = b"\n--" + boundary.encode("utf-8")
    begun: int | None = None
    at = start - 1
    while (at := raw.find(delimiter, at, end)) >= 0:
        budget.spend(1, "parts")
        line_end, at = at, at + len(delimiter)
        rest = _AFTER_BOUNDARY.match(raw, at, end)
        if not rest:
            doubts.note("a line that only begins like a boundary")
            continue
        if begun is not None:
            if raw[line_end - 1 : line_end] == b"\r":
                line_end -= 1
            yield begun, max(line_end, begun)
        if rest[1]:
            if begun is None:
                doubts.note("a multipart without parts")
                yield start, start
            if raw.find(delimiter, at, end) >= 0:
                doubts.note("a multipart that goes on after its end")
            return
        begun = rest.end()
        # Its line end may begin the next one.
        at = begun - 1
    if begun is not None:
        doubts.note("a multipart without an end")
        yield begun, end


def _no(rule: Rule, text: str) -> _RefusedError:
    return _RefusedError(refuse(rule, text))


def _beyond(text: str) -> _RefusedError:
    return _RefusedError(refuse(Rule.BEYOND_LIMITS, f"message not taken: {text}"))
