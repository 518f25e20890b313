"""The fields of a request as JSON Schema: what `core/request.py` enforces, as far as a schema can say it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from opensend_milter.core.attachments import CONTENT_TYPE_CHARACTERS, FILENAME_OCTETS
from opensend_milter.core.control import MOST_TAGS
from opensend_milter.core.fields import NAME_CHARACTERS
from opensend_milter.core.request import MOST_HEADERS, OUR_FAMILIES, OUR_FIELDS, SUBJECT_CHARACTERS, RequestLimits

Schema = Mapping[str, object]
_CONTROLS = r"\u0000-\u0008\u000a-\u001f\u007f-\u009f\u2028\u2029"
"""Without the tab."""
_SPACES = r"\t \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_WORD = r"[A-Za-z0-9!#$&^_.+-]{1,127}"
_PARAMETER = rf';[ \t]*{_WORD}=({_WORD}|"([ !#-\[\]-~]|\\[ -~])*")[ \t]*'
_LETTER = r"[A-Za-z0-9+/][\r\n]*"
_NAME = "[A-Za-z0-9_-]"
_NULL: Schema = {"type": "null"}


def text(pattern: str, **bounds: object) -> Schema:
    """Describe a string that as a whole is as the pattern says."""
    return {"type": "string", "pattern": f"^({pattern})$", **bounds}


def ref(name: str) -> Schema:
    """Point to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(item: Schema, **bounds: int) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": item, **bounds}


def closed(required: list[str], properties: Mapping[str, Schema], **more: object) -> Schema:
    """Describe an object without other fields; what is not required may be null, which says that it is not given."""
    return {
        "type": "object",
        "required": required,
        "properties": {name: one if name in required else _or_null(one) for name, one in properties.items()},
        "additionalProperties": False,
        **more,
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]} if schema else schema


def schemas(limits: RequestLimits, max_bulk_messages: int) -> Schema:
    """Return the schemas of all that is asked."""
    shared = _shared(limits)
    send = closed(
        ["to", "subject", "body"],
        {
            **shared,
            "body": _BODY,
            "body_html": _BODY,
            "from_name": text(f"[^{_CONTROLS}]*", maxLength=NAME_CHARACTERS),
            "attachments": listed(ref("File"), maxItems=limits.max_attachments),
            "metadata": {},
            "send_at": _SEND_AT,
        },
    )
    email = closed(
        ["from", "to", "subject"],
        {
            **shared,
            "text": _BODY,
            "html": _BODY,
            "attachments": listed(ref("EmailFile"), maxItems=limits.max_attachments),
            "scheduled_at": _SEND_AT,
        },
        anyOf=[{"required": [name], "properties": {name: {"type": "string"}}} for name in ("text", "html")],
    )
    octets = listed({"type": "integer", "minimum": 0, "maximum": 255})
    buffer = closed(["type", "data"], {"type": {}, "data": octets})
    file = {"filename": _FILENAME, "content_type": _CONTENT_TYPE, "content_id": _CONTENT_ID}
    return {
        "Address": _ADDRESS,
        "Send": send,
        # Taken item by item: one that is wrong is refused by itself.
        "Bulk": closed(["messages"], {"messages": _bulk({"anyOf": [ref("Send"), {}]}, max_bulk_messages)}),
        "Email": email,
        "Time": closed(["scheduled_at"], {"scheduled_at": _SEND_AT}),
        "Emails": _bulk(ref("Email"), max_bulk_messages),
        "File": closed(["filename", "content_type", "data"], {**file, "data": _BASE64}),
        "EmailFile": closed(["filename", "content"], {**file, "content": {"anyOf": [_BASE64, octets, buffer]}}),
    }


def _bulk(item: Schema, most: int) -> Schema:
    return listed(item, minItems=1, maxItems=most)


def _shared(limits: RequestLimits) -> dict[str, Schema]:
    address, most = ref("Address"), limits.max_recipients
    copies: Schema = {
        "anyOf": [address, listed(address)],
        "description": f"to, cc and bcc together: at most {most}",
    }
    tag = closed(["name", "value"], {"name": text(f"{_NAME}{{1,256}}"), "value": _TAG_VALUE})
    return {
        "from": address,
        "to": {"anyOf": [address, listed(address, minItems=1, maxItems=most)]},
        "cc": copies,
        "bcc": copies,
        "reply_to": {"anyOf": [address, listed(address, maxItems=most)]},
        "subject": text(f"[^{_CONTROLS}]*[^{_CONTROLS}{_SPACES}][^{_CONTROLS}]*", maxLength=SUBJECT_CHARACTERS),
        "headers": {
            "type": "object",
            "maxProperties": MOST_HEADERS,
            "propertyNames": {"pattern": "^[!-9;-~]{1,126}$", "not": {"pattern": _ours()}},
            "additionalProperties": text(" *[!-~]([ -~]{0,868}[!-~])? *"),
        },
        "tags": {
            "anyOf": [
                listed(tag, maxItems=MOST_TAGS),
                {
                    "type": "object",
                    "maxProperties": MOST_TAGS,
                    "propertyNames": {"pattern": f"^{_NAME}{{1,256}}$"},
                    "additionalProperties": _TAG_VALUE,
                },
            ]
        },
    }


def _ours() -> str:
    """Write a pattern of the header fields that a request may not have, in any case."""
    whole, begun = ("|".join(map(_any_case, sorted(names))) for names in (OUR_FIELDS, OUR_FAMILIES))
    return f"^(({whole})$|{begun})"


def _any_case(name: str) -> str:
    return re.sub("[a-z]", lambda letter: f"[{letter[0].upper()}{letter[0]}]", name)


_ADDRESS: Schema = {
    "type": "string",
    "format": "mailbox",
    "description": "an address as SMTP takes it, alone or as: Name <user@domain>; the name has up to 256 characters",
}
_BODY = text(r"[^\u0000]*")
_SEND_AT: Schema = {
    "type": "string",
    "format": "sending-time",
    "description": "a time with its zone as 2026-01-31T08:00:00+01:00, or a delay as: in 10 minutes; up to 30 days",
}
_TAG_VALUE = text(f"{_NAME}{{0,256}}")
_FILENAME: Schema = {
    **text(
        rf"[^{_CONTROLS}{_TURNING}{_SPACES}/\\]([^{_CONTROLS}{_TURNING}\t/\\]*[^{_CONTROLS}{_TURNING}{_SPACES}/\\])?",
        maxLength=FILENAME_OCTETS,
        description="octets of UTF-8 are counted",
    ),
    "not": {"pattern": r"=\?|^\.{1,2}$"},
}
_CONTENT_TYPE: Schema = {
    **text(rf"[ \t]*{_WORD}/{_WORD}[ \t]*({_PARAMETER})*[; \t]*", maxLength=CONTENT_TYPE_CHARACTERS),
    "not": {"pattern": rf"^[ \t]*{_any_case('multipart')}/"},
}
_CONTENT_ID = text("<?[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,128}>?")
_BASE64 = text(
    rf"[\r\n]*(({_LETTER}){{4}})*(({_LETTER}){{2}}=[\r\n]*=[\r\n]*|({_LETTER}){{3}}=[\r\n]*)?",
    contentEncoding="base64",
)
