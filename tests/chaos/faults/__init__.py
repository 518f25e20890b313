"""All kinds of faults, by what they hit."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.faults import (
    beside,
    clocks,
    configuration,
    disks,
    hosts,
    network,
    next_hop,
    postgres,
    processes,
    services,
    standby,
)
from tests.chaos.faults.harm import Harm

GROUPS: Mapping[str, Mapping[str, Harm]] = {
    "processes": processes.FAULTS,
    "Postgres": {**postgres.FAULTS, **standby.FAULTS},
    "disks": disks.FAULTS,
    "network": network.FAULTS,
    "Amazon": services.FAULTS,
    "next hop": next_hop.FAULTS,
    "configuration": configuration.FAULTS,
    "clocks": clocks.FAULTS,
    "two of one": beside.FAULTS,
    "two hosts": hosts.FAULTS,
}
KINDS: Mapping[str, Harm] = {name: harm for group in GROUPS.values() for name, harm in group.items()}
