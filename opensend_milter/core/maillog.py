"""The mail log's vocabulary: one function per event, one key=value line each, queue id first; each event is counted.

Addresses never appear: the domain of a sender says enough to follow a message, ids lead to the rest.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from opensend_milter.core import counting
from opensend_milter.core.actions import Action, Outcome
from opensend_milter.core.budget import Where
from opensend_milter.core.counting import LoginOutcome
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.logline import Pairs, Plain, Said
from opensend_milter.core.model import CLIENT_ADDR, EmailId, Job, Message, Refuse, Sent
from opensend_milter.core.rules import Rule

log = logging.getLogger("opensend_milter.mail")
_LOOKED_AT = {"/healthz", "/readyz", "/metrics"}
_FAULTS_BEGIN = 400


def accepted(message: Message, email_id: EmailId, waited_ms: float) -> None:
    """Note that the row is committed and the client is told 250."""
    _taken("accepted", message, email_id, waited_ms)
    counting.accepted(message.session.front_door, message.size, waited_ms / 1000)


def repeated(message: Message, email_id: EmailId, waited_ms: float) -> None:
    """Note that the client is told 250 for what it had sent before."""
    _taken("repeated", message, email_id, waited_ms)
    counting.repeated(waited_ms / 1000)


def _taken(status: str, message: Message, email_id: EmailId, waited_ms: float) -> None:
    _note(
        logging.INFO,
        message.queue_id,
        email=email_id,
        key=message.session.key_id,
        client=message.session.client_address,
        size=message.size,
        nrcpt=len(message.envelope.recipients),
        status=status,
        delay_ms=round(float(waited_ms), 1),
    )


def refused(message: Message, refusal: Refuse, waited_ms: float) -> None:
    """Note that the client is told why not; where the mail server has kept something from us, what."""
    lacks: dict[str, Plain] = {"lacks": CLIENT_ADDR} if refusal.rule is Rule.NETWORK_UNKNOWN else {}
    recorded: dict[str, Plain] = {"ref": refusal.ref} if refusal.token else {}
    _note(
        logging.INFO,
        message.queue_id,
        key=message.session.key_id,
        client=message.session.client_address,
        size=message.size,
        nrcpt=len(message.envelope.recipients),
        status="refused",
        code=refusal.code,
        dsn=refusal.enhanced,
        rule=refusal.rule.value,
        **recorded,
        **lacks,
        delay_ms=round(float(waited_ms), 1),
    )
    counting.refused(message.session.front_door, refusal.rule, waited_ms / 1000)


def reading_given_up(message: Message, where: Where | Literal["time"]) -> None:
    """Note what was too much: steps in a place of the message, or time."""
    _note(
        logging.WARNING,
        message.queue_id,
        key=message.session.key_id,
        client=message.session.client_address,
        size=message.size,
        status="reading-given-up",
        where=where,
    )
    counting.reading_given_up(where)


def not_spooled(queue_id: str, size: int, reason: str) -> None:
    """Note that a large message was put off because it could not be put on disk."""
    _note(logging.ERROR, queue_id, size=size, status="not-spooled", reason=_said(reason))
    counting.not_spooled()


def sent(job: Job, outcome: Sent) -> None:
    """Note that the next hop has the message."""
    _note(
        logging.INFO,
        job.queue_id,
        email=job.email_id,
        nrcpt=len(job.recipients),
        refused=len(outcome.refused),
        attempt=job.attempts + 1,
        status="sent",
    )
    counting.attempt(outcome.courier, "sent")


def partly(job: Job, outcome: Sent, wait_s: float) -> None:
    """Note that the next hop has the message for some, and will be asked again for others."""
    _note(
        logging.WARNING,
        job.queue_id,
        email=job.email_id,
        nrcpt=len(job.recipients),
        refused=len(outcome.refused),
        deferred=len(outcome.deferred),
        attempt=job.attempts + 1,
        status="partly",
        wait_s=round(wait_s),
    )
    counting.attempt(outcome.courier, "partly")


def deferred(job: Job, reason: str, wait_s: float, courier: CourierName | None = None) -> None:
    """Note that it will be tried again."""
    _note(
        logging.WARNING,
        job.queue_id,
        email=job.email_id,
        attempt=job.attempts + 1,
        status="deferred",
        wait_s=round(wait_s),
        reason=_said(reason),
    )
    counting.attempt(courier or job.route.courier, "deferred")


def failed(
    job: Job, reason: str, courier: CourierName | None = None, *, status: Literal["failed", "bounced"] = "failed"
) -> None:
    """Note that it was given up: nobody has it."""
    _note(
        logging.ERROR,
        job.queue_id,
        email=job.email_id,
        attempt=job.attempts + 1,
        status=status,
        reason=_said(reason),
    )
    counting.attempt(courier or job.route.courier, "failed")


def uncertain(job: Job, reason: str, courier: CourierName | None = None) -> None:
    """Note that it may be out: nobody sends it again without being asked."""
    _note(
        logging.ERROR,
        job.queue_id,
        email=job.email_id,
        attempt=job.attempts + 1,
        status="uncertain",
        reason=_said(reason),
    )
    counting.attempt(courier or job.route.courier, "uncertain")


def login(outcome: LoginOutcome, *, client: str, mechanism: str, took_ms: float) -> None:
    """Note how a login ended: never whose key it was, nor the name that was given, which may hold the key."""
    values: dict[str, Plain] = {"outcome": outcome, "client": client, "mechanism": mechanism}
    level = logging.DEBUG if outcome == "accepted" else logging.INFO
    log.log(level, "login %s", Pairs(values | {"delay_ms": round(float(took_ms), 1)}))
    counting.login(outcome, took_ms / 1000)


def http_request(request_id: str, *, method: str, route: str, code: int, peer: str, took_s: float) -> None:
    """Note that an HTTP request was answered; what monitoring asks every few seconds is told for those who ask."""
    _, known_method, _ = counting.HTTP_REQUESTS.takes((route, method, str(code)))
    _note(
        logging.DEBUG if route in _LOOKED_AT and code < _FAULTS_BEGIN else logging.INFO,
        request_id,
        method=known_method,
        route=route,
        code=code,
        peer=peer,
        delay_ms=round(took_s * 1000, 1),
    )
    counting.http_request(route, method, code, took_s)


def rescheduled(request_id: str, email_id: EmailId, key_id: str, moment: datetime | None) -> None:
    """Note that the holder of a key had an email sent at another time, or not at all."""
    at: dict[str, Plain] = {"at": moment.astimezone(UTC).isoformat(timespec="seconds")} if moment else {}
    status = "scheduled" if moment else "canceled"
    _note(logging.INFO, request_id, email=email_id, key=key_id, status=status, **at)


def acted(request_id: str, action: Action, name: str, client: str, outcome: Outcome) -> None:
    """Note what somebody did about a message from the console, or why it was left."""
    left: dict[str, Plain | Said] = {"reason": _said(outcome.why_not)} if outcome.why_not else {}
    _note(
        logging.INFO,
        request_id,
        email=action.email_id,
        action=action.act,
        by=_said(name),
        client=client,
        status="left" if outcome.why_not else "done",
        **left,
    )


def quoted(text: str) -> str:
    """Make a foreign text one quoted word without line ends or addresses."""
    return f'"{_said(text)}"'


def _said(text: str) -> Said:
    words = ("<address>" if "@" in word else word for word in text.split())
    return Said(" ".join(words).replace('"', "'")[:300])


def _note(level: int, queue_id: str, **values: Plain) -> None:
    log.log(level, "%s", Pairs(values, queue_id=queue_id))
