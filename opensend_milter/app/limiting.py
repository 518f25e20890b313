"""How much is let in: one limiter for each process, over buckets that all share."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.postgres.rates import PostgresLeases
from opensend_milter.config import Config
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.model import Message, Outcome, refuse
from opensend_milter.core.policy import OURS
from opensend_milter.core.rates import Leases, RateLimits
from opensend_milter.core.rules import Rule
from opensend_milter.servers.throttle import Throttle

log = logging.getLogger(__name__)


def open_throttle(config: Config, role: link.Role) -> Throttle:
    """Start the limiter of a process."""
    timeout_s = config.milter.soft_timeout_s
    info = link.conninfo_for(config.database.url, config.database.password_dir, role)
    leases: Leases = PostgresLeases(info, name="opensend-rates", timeout_s=timeout_s)
    throttle = Throttle(leases, limits_of(config), timeout_s=timeout_s)
    throttle.start()
    return throttle


def limits_of(config: Config) -> RateLimits:
    """Return the section `limits`."""
    return RateLimits(**dataclasses.asdict(config.limits))


def limited(throttle: Throttle, accept: Callable[[Message], Outcome], message: Message) -> Outcome:
    """Let a message in that is within the limits; one that is not goes on as refused, so that it is recorded."""
    if message.fault is None:
        try:
            decision = throttle.check(message.session.client_address, message.session.key_id)
        except StoreUnavailable as error:
            log.warning("%s: %s", message.queue_id, error)
            return OURS
        if not decision.allowed:
            text = f"over the limit of {decision.limit} messages a minute ({decision.tier}); try again later"
            fault = refuse(Rule.RATE_LIMITED, text)
            message = dataclasses.replace(message, fault=fault)
    return accept(message)
