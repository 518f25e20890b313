"""The stored message as it leaves: without Bcc and our control fields, behind our trace fields; otherwise untouched.

What is prepended depends on the stored message alone, so that each attempt sends the same bytes.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC
from email.utils import format_datetime

from opensend_milter.core.address import domain_of, normal_domain
from opensend_milter.core.control import is_control
from opensend_milter.core.errors import PermanentError
from opensend_milter.core.model import Address, Job, Parcel

MOST_HOPS = 50
NEVER_SENT = ("bcc", "resent-bcc")

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"\A\r\n|(?<=\r\n)\r\n")
_FIELD_END = re.compile(rb"\r\n(?![ \t])")
_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


def parcel(job: Job, *, hostname: str, sender: Address) -> Parcel:
    """Make what a courier is handed; raise PermanentError where the message goes round in circles."""
    return Parcel(
        email_id=job.email_id,
        sender=sender,
        from_address=job.from_address,
        recipients=job.recipients,
        content=outgoing(job, hostname=hostname),
        route=job.route,
    )


def outgoing(job: Job, *, hostname: str) -> bytes:
    """Return the message with CRLF line ends; raise PermanentError where it goes round in circles."""
    raw = job.raw if _is_crlf_only(job.raw) else _LINE_END.sub(b"\r\n", job.raw)
    end = _HEADER_END.search(raw)
    header, body = (raw[: end.start()], raw[end.start() :]) if end else (raw, b"")
    fields = [field + b"\r\n" for field in _FIELD_END.split(header.removesuffix(b"\r\n"))] if header else []
    names = [_name(field) for field in fields]
    if names.count("received") > MOST_HOPS:
        raise PermanentError(f"5.4.6 mail loop: more than {MOST_HOPS} Received fields")
    kept = [field for name, field in zip(names, fields, strict=True) if name not in NEVER_SENT and not is_control(name)]
    return b"".join([_received(job, hostname), *_missing(job, names), *kept, body])


def _is_crlf_only(raw: bytes) -> bool:
    return raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")


def _name(field: bytes) -> str:
    match = _NAME.match(field)
    return match[1].decode("ascii").lower() if match else ""


def _received(job: Job, hostname: str) -> bytes:
    """Write the trace field (RFC 5321, 4.4), without `for`: it would show a Bcc."""
    protocol = "HTTP" if job.front_door == "http" else "ESMTPSA" if job.tls else "ESMTPA"
    identifier = job.queue_id if _ATOM.fullmatch(job.queue_id) else job.email_id
    return (
        f"Received: from {_client(job.client_address)}\r\n"
        f"\tby {hostname} (opensend-milter) with {protocol} id {identifier};\r\n"
        f"\t{_date(job)}\r\n"
    ).encode("ascii")


def _client(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    literal = f"[IPv6:{ip}]" if isinstance(ip, ipaddress.IPv6Address) else f"[{ip}]"
    return f"{literal} ({literal})"


def _missing(job: Job, names: list[str]) -> list[bytes]:
    domain = domain_of(job.from_address)
    message_id = f"<{job.email_id}@{normal_domain(domain) or domain}>"
    missing = {"message-id": f"Message-ID: {message_id}\r\n", "date": f"Date: {_date(job)}\r\n"}
    return [line.encode("utf-8") for name, line in missing.items() if name not in names]


def _date(job: Job) -> str:
    return format_datetime(job.received_at.astimezone(UTC))
