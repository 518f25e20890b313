"""What the statements of jobs.sql answer, one shape for each kind of row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import Address, EmailId, FrontDoor, UserId

Parameters = Mapping[str, Any]


class TakenRow(NamedTuple):
    """A job just leased: what take and take_due answer."""

    email_id: EmailId
    lease_id: str
    attempts: int
    rounds: int

    @property
    def key(self) -> Parameters:
        return {"id": self.email_id, "lease_id": self.lease_id}


class UncertainRow(NamedTuple):
    """What long_uncertain answers of one job."""

    email_id: EmailId
    lease_id: str
    attempts: int
    rounds: int
    user_id: UserId
    queue_id: str | None

    @property
    def key(self) -> Parameters:
        return {"id": self.email_id, "lease_id": self.lease_id}


class SubmissionRow(NamedTuple):
    """What was recorded of a message when it was taken, and who has it since."""

    user_id: UserId
    from_address: Address
    recipients: list[Address]
    some_have_it: bool
    refused: list[tuple[str, str]] | None
    received_at: datetime
    queue_id: str
    client_address: str
    front_door: FrontDoor
    tls: str
    courier: CourierName | None
    size_bytes: int


class RouteRow(NamedTuple):
    """What the domain of From asks for."""

    region: str | None
    configuration_set: str
    track_opens: bool
    track_clicks: bool
    tracking_host: str
    one_click: bool
