"""Whether next hops know those whom they are asked for, lane by lane."""

from __future__ import annotations

from collections.abc import Sequence

from opensend_milter.core.findings import Seen, good, problem
from opensend_milter.core.next_hop import is_relay_broken

SHOWN = 4


def seen(rows: Sequence[tuple[object, ...]]) -> Seen:
    """Judge lanes: user, courier, how many recipients there were lately, how many of them were unknown."""
    broken = [
        f"{unknown} of the last {asked} recipients of user {user} were unknown to the next hop of {courier}"
        for user, courier, asked, unknown in rows
        if is_relay_broken(int(str(asked)), int(str(unknown)))
    ]
    if not broken:
        return good("next hops know those whom they are asked for")
    return problem(
        f"{'; '.join(broken[:SHOWN])}: nobody is suppressed for it",
        "mend the relay; for what came before: opensend-milter suppression remove --via inline --since 1h; "
        "opensend-milter email retry --bounced --since 1h",
    )
