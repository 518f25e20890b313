"""The mail log's vocabulary: one function per event, one key=value line each, queue id first.

Addresses never appear: the domain of a sender says enough to follow a message, ids lead to the rest.
"""

from __future__ import annotations

import logging

from opensend_milter.core.model import EmailId, Job, Message, Refuse, Sent

log = logging.getLogger("opensend_milter.mail")


def accepted(message: Message, email_id: EmailId, waited_ms: float) -> None:
    """Note that the row is committed and the client is told 250."""
    log.info(
        "%s: email=%s key=%s client=%s size=%d nrcpt=%d status=accepted delay_ms=%.1f",
        message.queue_id,
        email_id,
        message.session.key_id,
        message.session.client_address,
        message.size,
        len(message.envelope.recipients),
        waited_ms,
    )


def repeated(message: Message, email_id: EmailId, waited_ms: float) -> None:
    """Note that the client is told 250 for what it had sent before."""
    log.info(
        "%s: email=%s key=%s client=%s size=%d nrcpt=%d status=repeated delay_ms=%.1f",
        message.queue_id,
        email_id,
        message.session.key_id,
        message.session.client_address,
        message.size,
        len(message.envelope.recipients),
        waited_ms,
    )


def refused(message: Message, refusal: Refuse, waited_ms: float) -> None:
    """Note that the client is told why not."""
    log.info(
        "%s: key=%s client=%s size=%d nrcpt=%d status=refused code=%d dsn=%s rule=%s delay_ms=%.1f",
        message.queue_id,
        message.session.key_id,
        message.session.client_address,
        message.size,
        len(message.envelope.recipients),
        refusal.code,
        refusal.enhanced,
        refusal.rule.value,
        waited_ms,
    )


def sent(job: Job, outcome: Sent) -> None:
    """Note that the next hop has the message."""
    log.info(
        "%s: email=%s nrcpt=%d refused=%d attempt=%d status=sent",
        job.queue_id,
        job.email_id,
        len(job.recipients),
        len(outcome.refused),
        job.attempts + 1,
    )


def partly(job: Job, outcome: Sent, wait_s: float) -> None:
    """Note that the next hop has the message for some, and will be asked again for others."""
    log.warning(
        "%s: email=%s nrcpt=%d refused=%d deferred=%d attempt=%d status=partly wait_s=%.0f",
        job.queue_id,
        job.email_id,
        len(job.recipients),
        len(outcome.refused),
        len(outcome.deferred),
        job.attempts + 1,
        wait_s,
    )


def deferred(job: Job, reason: str, wait_s: float) -> None:
    """Note that it will be tried again."""
    log.warning(
        "%s: email=%s attempt=%d status=deferred wait_s=%.0f reason=%s",
        job.queue_id,
        job.email_id,
        job.attempts + 1,
        wait_s,
        quoted(reason),
    )


def failed(job: Job, reason: str) -> None:
    """Note that it was given up."""
    log.error(
        "%s: email=%s attempt=%d status=failed reason=%s",
        job.queue_id,
        job.email_id,
        job.attempts + 1,
        quoted(reason),
    )


def uncertain(job: Job, reason: str) -> None:
    """Note that it may be out: nobody sends it again without being asked."""
    log.error(
        "%s: email=%s attempt=%d status=uncertain reason=%s",
        job.queue_id,
        job.email_id,
        job.attempts + 1,
        quoted(reason),
    )


def quoted(text: str) -> str:
    """Make a foreign text one quoted word without line ends or addresses."""
    words = ("<address>" if "@" in word else word for word in text.split())
    return '"' + " ".join(words).replace('"', "'")[:300] + '"'
