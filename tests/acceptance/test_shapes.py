"""Hostile shapes through Postfix: each gets an answer for good, and takes no more memory of `serve` than may be."""

from __future__ import annotations

import pytest

from tests.acceptance.running_sandbox import Sandbox, closed_on_failure
from tests.acceptance.submitting import Answer, submit
from tests.peaks import Peaks
from tests.shapes import LARGE, MOST_MB, SMALL, Shape
from tests.waiting import NEVER_S

FOR_GOOD = {250, 550, 552, 554}
"""Whoever hears 451 sends it again."""
ONE_OF_A_KIND = {(shape.finding, shape.name.partition(":")[0]): shape for shape in reversed(SMALL)}
BY_POSTFIX = [*ONE_OF_A_KIND.values(), *(shape for shape in LARGE if shape.name == "a part: 38 MB of fields")]
"""The others need no Postfix, which is long over the large ones: tests/integration/test_large_shapes.py, and
tests/unit/test_budget_of_shapes.py, where all are read. `make bench-hostile` sends each."""


def sent(sandbox: Sandbox, octets: bytes) -> Answer:
    client = sandbox.smtp()
    with closed_on_failure(client):
        assert client.sock
        client.sock.settimeout(NEVER_S)
        answer = submit(client, octets)
        client.quit()
    return answer


@pytest.mark.case(73)
@pytest.mark.case(74)
@pytest.mark.parametrize("shape", BY_POSTFIX, ids=lambda shape: shape.name)
def test_a_hostile_shape_is_answered_for_good_in_little_memory(sandbox: Sandbox, shape: Shape) -> None:
    said_before = len(sandbox.log("serve"))
    peaks = Peaks.from_now(sandbox.pid("serve"))
    answer = sent(sandbox, shape.octets())
    assert answer.code in FOR_GOOD, answer
    assert "Traceback" not in sandbox.log("serve")[said_before:]
    assert peaks.mb() < MOST_MB
