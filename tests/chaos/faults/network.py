"""The network between all of us and Postgres: cut, silent, slow, dead for open connections alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.cable import Way
from tests.chaos.faults.harm import Harm, needed, state
from tests.chaos.stand import Stand


def turned(way: Way) -> Harm:
    @contextmanager
    def change(stand: Stand) -> Iterator[None]:
        cable = needed(stand.cable, "cable to Postgres")
        cable.turn(way)
        try:
            yield
        finally:
            cable.turn("through")
            if way == "silent":  # what was swallowed does not come again: as after a firewall's restart
                cable.hang_up()

    return state(change)


@contextmanager
def half_open(stand: Stand) -> Iterator[None]:
    """Let open connections go dead, as after a firewall has forgotten them; new ones are good."""
    cable = needed(stand.cable, "cable to Postgres")
    cable.turn_open("silent")
    # No keepalive finds them dead, since a cable takes what it swallows. One that lay idle would be found so in the
    # time of another fault: by Dovecot above all, which waits for a minute.
    stand.until_whole.callback(cable.hang_up, "silent")
    yield


FAULTS: dict[str, Harm] = {
    "network-cut": turned("cut"),
    "network-silent": turned("silent"),
    "network-slow": turned("slow"),
    "network-half-open": state(half_open),
}
