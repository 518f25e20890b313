"""A claimed job, as a store would load it, and the parcel made of it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from opensend_milter.core.model import Address, EmailId, Job, Parcel, UserId
from opensend_milter.core.outgoing import parcel as composed

RAW = b"From: App <app@example.org>\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"


def job(**changes: Any) -> Job:
    """Return a job that differs only in what is named."""
    standard = Job(
        email_id=EmailId("0198c5a2-7f00-7abc-8def-0123456789ab"),
        user_id=UserId("u1"),
        lease_id="5a0cbd3e-0000-4000-8000-000000000000",
        attempts=0,
        from_address=Address("app@example.org"),
        recipients=(Address("to@example.net"),),
        raw=RAW,
        received_at=datetime(2025, 8, 20, 12, 0, 1, tzinfo=UTC),
        queue_id="4XabcdZ1Kz2",
        client_address="192.0.2.7",
        front_door="smtp",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    )
    return dataclasses.replace(standard, **changes)


def parcel(**changes: Any) -> Parcel:
    """Return what a courier is handed for such a job; `sender` is the return path."""
    sender = changes.pop("sender", None)
    given = job(**changes)
    return composed(given, hostname="mx.example.com", sender=sender or given.from_address)
