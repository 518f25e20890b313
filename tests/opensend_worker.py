"""What OpenSend's worker would ask of Amazon SES for a row of `emails`, and what of it would be refused.

Its behaviour is described here from what was observed of it, step by step from the row to SendEmail. Each step names
the fact it rests on: "contract, 4.8" is section 4, point 8, of opensend-contract.md, which is part of the design;
"seen" is what that does not say, and was seen of it. The limits are those of the SES documentation (SendEmail,
Message, MessageHeader, Destination, header fields).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email import message_from_bytes, message_from_string, policy
from email.headerregistry import AddressHeader, HeaderRegistry
from email.message import Message
from functools import cache
from typing import NotRequired, TypedDict

import botocore.session
from botocore.exceptions import ParamValidationError
from botocore.model import Shape
from botocore.validate import validate_parameters

ENTITY = "X-Entity-ID"
BOUNDARY = "----=_Part_of_the_worker"
MOST_RECIPIENTS = 50
MOST_HEADERS = 15
"""In Content.Simple, the worker's own among them (contract, 4.8)."""
MOST_BASE64 = 41_943_040
"""Blanks and line ends not counted (contract, 4.7)."""
LONGEST_LINE = 998
LONGEST_FILENAME = 255
MOST_TAGS = 75
"""Both are REST's, of which the dashboard shows the row (contract, 6)."""

_NAME = re.compile(r"[!-9;-~]{1,126}")
_VALUE = re.compile(r"[ -~]{1,870}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{0,256}")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:; {_TOKEN}={_TOKEN})*")
_ENDS_A_LINE = re.compile(r"[\r\n\0]")
_NEVER_CUSTOM = frozenset({
    "bcc", "cc", "content-disposition", "content-type", "date", "from", "message-id", "mime-version", "reply-to",
    "return-path", "subject", "to",
})  # fmt: skip
"""SES writes them itself, and refuses a request that gives them; the worker passes them on (contract, 4.8)."""
_OF_ONE_HOP = frozenset({
    "received", "delivered-to", "sender", "dkim-signature", "domainkey-signature", "authentication-results",
})  # fmt: skip
"""They would be untrue, or break what SES signs; a Sender would have to be verified. The worker passes them on as they
are (contract, 4.8), and the relay stored them (contract, 5, W14)."""
_AS_IT_WAS = policy.compat32.clone(linesep="\r\n", max_line_length=0)
_FAMILIES = ("content-", "resent-", "arc-", "x-ses-", "x-opensend-")


class RowAttachment(TypedDict):
    filename: str
    content: str
    content_type: NotRequired[str]
    content_id: NotRequired[str]


Row = TypedDict(
    "Row",
    {
        "id": str,
        "from": str,
        "to": list[str],
        "cc": list[str],
        "bcc": list[str],
        "reply_to": list[str],
        "subject": str,
        "text": str,
        "html": str,
        "headers": dict[str, str],
        "tags": list[dict[str, str]],
        "attachments": list[RowAttachment],
    },
)
"""What of a row the worker reads (contract, 1 and 4.8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a recipient can be shown of a message."""

    text: str
    html: str
    attachments: tuple[ShownAttachment, ...]


@dataclass(frozen=True, slots=True)
class ShownAttachment:
    filename: str | None
    kind: str
    """Type, and the parameters without which it is something else."""
    content_id: str
    content: bytes


# ---------------------------------------------------------------------- from the row to SendEmail


def request(row: Row) -> dict[str, object]:
    """Return the parameters of SendEmail, for a domain without a configuration set and without tracking."""
    content: dict[str, object]
    # contract, 4.7
    attachments = list(filter(_is_kept, row["attachments"]))
    # contract, 4.8; that the field is in a raw message too: seen
    headers = {**row["headers"], ENTITY: row["id"]}
    # From and the recipients as the row has them, and one tag for all: contract, 4.8
    parameters: dict[str, object] = {
        "FromEmailAddress": row["from"],
        "Destination": {"ToAddresses": row["to"], "CcAddresses": row["cc"], "BccAddresses": row["bcc"]},
        "EmailTags": [{"Name": ENTITY, "Value": row["id"]}],
    }
    if attachments:
        content = {"Raw": {"Data": _mime(row, headers, attachments)}}
    else:
        # An empty one is absent, and then a Body may be empty: contract, 4.8 and 8
        bodies = {"Html": row["html"], "Text": row["text"]}
        content = {
            "Simple": {
                "Subject": {"Data": row["subject"]},
                "Body": {name: {"Data": text} for name, text in bodies.items() if text},
                "Headers": [{"Name": name, "Value": value} for name, value in headers.items()],
            }
        }
        # contract, 4.8: of Content.Simple only
        parameters["ReplyToAddresses"] = row["reply_to"]
    return {**parameters, "Content": content}


def _is_kept(attachment: RowAttachment) -> bool:
    """Tell whether the worker sends it: what has no name or no content it drops without a word (contract, 4.7).

    It would fetch what has a `path` instead; a row of ours has none.
    """
    return isinstance(attachment.get("filename"), str) and isinstance(attachment.get("content"), str)


def _mime(row: Row, headers: Mapping[str, str], attachments: Iterable[RowAttachment]) -> bytes:
    """Write the message of a row with attachments: flat, and with one body (contract, 4.8)."""
    # With Bcc, without Date and Message-ID: contract, 4.8; the order, a To without anybody, and Reply-To: seen
    lists = {"To": row["to"], "Cc": row["cc"], "Bcc": row["bcc"]}
    fields = {
        "From": row["from"],
        **{name: ", ".join(addresses) for name, addresses in lists.items() if addresses or name == "To"},
        # As it is, without encoded words: contract, 4.8 and 8
        "Subject": row["subject"],
        **({"Reply-To": ", ".join(row["reply_to"])} if row["reply_to"] else {}),
        # As they are: contract, 4.8
        **headers,
        "MIME-Version": "1.0",
        "Content-Type": f'multipart/mixed; boundary="{BOUNDARY}"',
    }
    # Beside html the text is dropped: contract, 4.8 and 8
    body, kind = (row["html"], "html") if row["html"] else (row["text"], "plain")
    # Whatever is in it, and however long its lines are: contract, 4.8 and 8
    typed = {"Content-Type": f"text/{kind}; charset=UTF-8", "Content-Transfer-Encoding": "7bit"}
    # Without a body its part is not even an empty line: seen.
    parts = [_part(typed, body) if body else "", *map(_attached, attachments)]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return (f"{head}\r\n" + "".join(f"--{BOUNDARY}\r\n{part}" for part in parts) + f"--{BOUNDARY}--").encode()


def _attached(attachment: RowAttachment) -> str:
    # Else as it is, without RFC 2231: contract, 4.8 and 8; the underscores, the fields and their order: seen
    name = re.sub(r'["\\]', "_", attachment["filename"])
    content_id = attachment.get("content_id")
    fields = {
        "Content-Type": f'{attachment.get("content_type", "application/octet-stream")}; name="{name}"',
        "Content-Transfer-Encoding": "base64",
        **({"Content-ID": f"<{content_id}>"} if content_id else {}),
        "Content-Disposition": f'{"inline" if content_id else "attachment"}; filename="{name}"',
    }
    # As it is, so that the row decides how long the lines are: contract, 4.8
    return _part(fields, attachment["content"])


def _part(fields: Mapping[str, str], content: str) -> str:
    """Write a part, and the line end that belongs to the boundary after it."""
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{head}\r\n{content}\r\n"


# ---------------------------------------------------------------------- what would be refused


def faults(row: Row) -> list[str]:
    """Return every reason for which the worker or SES would not send this row as it is meant.

    A fault is tried three times, and then the message is failed (contract, 4.10), although its sender got a 250.
    """
    found = [*_of_the_addresses(row), *_of_the_subject(row), *_of_the_headers(row), *_of_the_tags(row)]
    found += _of_the_attachments(row)
    return found or [*_of_the_request(row)]


def _of_the_addresses(row: Row) -> Iterator[str]:
    yield from _of_one_address("from", row["from"])
    recipients = [*row["to"], *row["cc"], *row["bcc"]]
    # contract, 5, W20
    if not 1 <= len(recipients) <= MOST_RECIPIENTS:
        yield f"{len(recipients)} recipients, not 1 to {MOST_RECIPIENTS}"
    for name, addresses in {"to": row["to"], "cc": row["cc"], "bcc": row["bcc"], "reply_to": row["reply_to"]}.items():
        for address in addresses:
            yield from _of_one_address(name, address)


def _of_one_address(name: str, written: str) -> Iterator[str]:
    """SES has no SMTPUTF8: domains are spelled with A-labels, names in encoded words, other local parts not at all."""
    if not written.isascii():
        yield f"{name}: {written!a} is not ASCII"
        return
    if _ENDS_A_LINE.search(written):
        yield f"{name}: {written!a} is more than one line"
        return
    header = HeaderRegistry()("to", written)
    assert isinstance(header, AddressHeader)
    if len(header.addresses) != 1 or header.defects or not header.addresses[0].domain:
        yield f"{name}: {written!a} is not one address"


def _of_the_subject(row: Row) -> Iterator[str]:
    # What the worker asks of a header's value (contract, 4.8) it asks of all that it writes into one: seen
    if _ENDS_A_LINE.search(row["subject"]):
        yield "subject: more than one line"


def _of_the_headers(row: Row) -> Iterator[str]:
    """SES's limits: the worker itself stops only at a line end, a NUL or a name of other characters (contract, 4.8)."""
    headers = row["headers"]
    for name, value in headers.items():
        lowered = name.lower()
        if not _NAME.fullmatch(name):
            yield f"header {name[:40]!a}: no name of 1 to 126 visible characters"
        if not _VALUE.fullmatch(value):
            yield f"header {name[:40]!a}: no value of 1 to 870 printable ASCII characters"
        if lowered in _NEVER_CUSTOM or lowered == ENTITY.lower():
            yield f"header {name}: written by SES or the worker"
        if lowered in _OF_ONE_HOP or lowered.startswith(_FAMILIES):
            yield f"header {name}: not true of what SES sends"
    if len({name.lower() for name in headers}) < len(headers):
        yield "headers: the same name twice"
    if not row["attachments"] and len(headers) + 1 > MOST_HEADERS:
        yield f"headers: {len(headers)} and {ENTITY} are more than {MOST_HEADERS}"


def _of_the_tags(row: Row) -> Iterator[str]:
    """REST's limits (contract, 6): the worker hands SES no tag but its own (contract, 4.8)."""
    if len(row["tags"]) > MOST_TAGS:
        yield f"tags: more than {MOST_TAGS}"
    for tag in row["tags"]:
        if not _TAG.fullmatch(tag.get("name", "")) or not _TAG_VALUE.fullmatch(tag.get("value", "")):
            yield f"tags: {tag}"


def _of_the_attachments(row: Row) -> Iterator[str]:
    letters = 0
    for number, each in enumerate(row["attachments"], 1):
        if not _is_kept(each):
            yield f"attachment {number}: dropped, without a name or content"
            continue
        letters += len(each["content"]) - sum(map(each["content"].count, " \t\r\n"))
        yield from (f"attachment {number}: {fault}" for fault in _of_one_attachment(each))
    if letters > MOST_BASE64:
        yield f"attachments: {letters} octets of base64 are more than {MOST_BASE64}"


def _of_one_attachment(attachment: RowAttachment) -> Iterator[str]:
    filename, kind = attachment["filename"], attachment.get("content_type", "")
    if not 1 <= len(filename) <= LONGEST_FILENAME or _ENDS_A_LINE.search(filename):
        yield f"file name {filename[:40]!a}"
    if kind and not _TYPE.fullmatch(kind):
        yield f"type {kind!a}"
    # The worker writes base64 whatever it is (contract, 4.8); a delivery report and a message need another type.
    if kind.startswith(("message/", "multipart/")):
        yield f"{kind} in base64 (RFC 2046, 5.2)"
    if not re.fullmatch(r"[!-;=?-~]{1,900}", attachment.get("content_id", "id")):
        yield f"content id {attachment.get('content_id')!a}"
    if any(len(line) > LONGEST_LINE for line in attachment["content"].split("\r\n")):
        yield f"a line over {LONGEST_LINE} octets"
    try:
        b64decode(attachment["content"].replace("\r\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        yield f"no base64: {error}"


def _of_the_request(row: Row) -> Iterator[str]:
    """Hold the whole request against AWS's own description of it."""
    parameters = request(row)
    try:
        validate_parameters(parameters, _send_email())
    except ParamValidationError as error:
        yield f"request: {error}"
    raw = raw_of(parameters)
    if raw is not None:
        yield from _of_the_message(raw)
    elif not row["html"] and not row["text"]:
        # contract, 8
        yield "body: neither text nor html"


@cache
def _send_email() -> Shape:
    shape = botocore.session.get_session().get_service_model("sesv2").operation_model("SendEmail").input_shape
    assert shape
    return shape


def _of_the_message(raw: bytes) -> Iterator[str]:
    """SES takes a raw message as it is, with lines of at most 1,000 octets (its documentation, RawMessage)."""
    lines = raw.split(b"\r\n")
    if any(len(line) > LONGEST_LINE for line in lines):
        yield f"message: a line over {LONGEST_LINE} octets"
    if any(re.search(rb"[\r\n]", line) for line in lines):
        yield "message: a line end that is not CRLF (RFC 5321, 2.3.8)"


# ---------------------------------------------------------------------- what the recipient sees


def raw_of(parameters: Mapping[str, object]) -> bytes | None:
    """Return the message in a request, where it holds one."""
    content = parameters["Content"]
    assert isinstance(content, dict)
    raw = content.get("Raw")
    return bytes(raw["Data"]) if raw else None


def shown_by(row: Row) -> Shown:
    """Return what arrives when the worker sends this row."""
    raw = raw_of(request(row))
    return shown(raw) if raw is not None else Shown(text=row["text"], html=row["html"], attachments=())


def shown(raw: bytes) -> Shown:
    """Read a message as the standard library does."""
    # File names in plain UTF-8 need the text, content the bytes: the library reads either right, not both.
    named = message_from_string(raw.decode("utf-8", "surrogateescape"), policy=policy.default)
    held = message_from_bytes(raw)
    bodies: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    attachments: list[ShownAttachment] = []
    for name, part in zip(_leaves(named), _leaves(held), strict=True):
        kind, filename = part.get_content_type(), name.get_filename()
        if kind in bodies and filename is None and part.get_content_disposition() != "attachment":
            bodies[kind].append(_octets(part).decode(part.get_content_charset("utf-8")))
            continue
        parameters = [f"; {key}={part.get_param(key)}" for key in ("method", "smime-type") if part.get_param(key)]
        content_id = (part.get("Content-ID") or "").strip("<> ")
        attachments.append(ShownAttachment(filename, kind + "".join(parameters), content_id, _octets(part)))
    text, html = ("\n".join(bodies[kind]) for kind in ("text/plain", "text/html"))
    return Shown(text=text, html=html, attachments=tuple(attachments))


def _leaves(part: Message) -> Iterator[Message]:
    if part.get_content_maintype() != "multipart" or not part.is_multipart():
        yield part
        return
    for inner in _inner(part):
        yield from _leaves(inner)


def _inner(part: Message) -> Iterator[Message]:
    for each in part.get_payload():
        assert isinstance(each, Message)
        yield each


def _octets(part: Message) -> bytes:
    if part.is_multipart():  # an attached message: the library has read it, and writes it as it was
        written = b"".join(each.as_bytes(policy=_AS_IT_WAS) for each in _inner(part))
        # Of the groups of fields in a delivery report it ends the last with an empty line too.
        return written.removesuffix(b"\r\n") if part.get_content_subtype() == "delivery-status" else written
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets
