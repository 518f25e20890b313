"""Amazon's queue and Amazon's SES, failing in each way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.chaos.amazon import Service, Way
from tests.chaos.faults.harm import Harm, needed, state, struck
from tests.chaos.stand import Stand

WAYS: tuple[Way, ...] = ("closed", "silent", "slow", "broken", "throttled", "denied", "garbage", "unheard")


def failing(service: Service, way: Way) -> Harm:
    @contextmanager
    def change(stand: Stand) -> Iterator[None]:
        amazon = needed(stand.amazon, "Amazon")
        amazon.turn(service, way)
        try:
            yield
        finally:
            amazon.turn(service, "good")

    return state(change)


def forgetful(stand: Stand, _: Random) -> None:
    """Lose what is in the queue, as one that is killed and keeps nothing."""
    needed(stand.amazon, "Amazon").queue.clear()


FAULTS: dict[str, Harm] = {
    **{f"sqs-{way}": failing("sqs", way) for way in WAYS},
    "sqs-forgets": struck(forgetful),
    **{f"ses-{way}": failing("ses", way) for way in WAYS},
}
