"""What every courier promises, whichever way its messages leave; what is only one's own is in its own file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

import dkim
import pytest

from opensend_milter.adapters.couriers import plunk, ses, smtp
from opensend_milter.core.couriers import COURIERS, CourierName
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain, OpensendError
from opensend_milter.core.model import Address
from opensend_milter.core.ports import Courier
from tests.integration.courier_abort import aborted_once
from tests.integration.courier_hops import KINDS, Hop, Promise, Step, next_hop
from tests.integration.courier_messages import SIGNED, TXT
from tests.jobs import RAW, parcel
from tests.waiting import NEVER_S, scaled_s

MEANING: Mapping[Step, type[OpensendError] | None] = {
    "takes it": None,
    "refuses for good": DeliveryRefused,
    "defers": DeliveryDeferred,
    "hangs up inside the message": DeliveryDeferred,
    "hangs up after the message": DeliveryUncertain,
    "stands still inside the message": DeliveryDeferred,
    "stands still after the message": DeliveryUncertain,
}
"""Before the last byte nothing can be out; after it only an answer is one."""
STILL: tuple[Step, ...] = ("stands still inside the message", "stands still after the message")
LARGE = RAW + (b"x" * 76 + b"\r\n") * 200_000
"""More than lies in the buffers between two processes."""
BODIES = [
    b"",
    b"hello\r\n",
    b"no end of line",
    b".\r\n",
    b"..\r\n.\r\n...\r\n",
    b".",
    b"a\r\n.",
    b"a\r\n.leading\r\n.",
    b"\r\n\r\n\r\n",
    b"\x00 NUL\r\n",
    b"8 bits: \xc3\xa9 \xe9 \xff\r\n",
    b"x" * 2_000 + b"\r\n.\r\n",
    b"".join(b"." * n + b"\r\n" for n in range(300)) * 50,
]
ENDINGS = [b"\n.\n", b"\r.\r\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r\n", b"\r\n.\r", b"x"]

Make = Callable[[Hop, float], Courier]


def who_can(*promises: Promise) -> list[CourierName]:
    """Name those that do not say why they cannot."""
    return [name for name in KINDS if not set(promises) & KINDS[name].cannot.keys()]


def courier_and_step(*steps: Step) -> list[tuple[CourierName, Step]]:
    return [(name, step) for step in steps for name in who_can(step)]


@pytest.fixture
def hop(name: CourierName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hop]:
    with next_hop(name, tmp_path, monkeypatch) as found:
        found.does("takes it")
        yield found


@pytest.fixture
def courier_to() -> Iterator[Make]:
    made: list[Courier] = []

    def courier(hop: Hop, timeout_s: float = NEVER_S) -> Courier:
        made.append(hop.courier(timeout_s))
        return made[-1]

    yield courier
    for one in made:
        one.close()


@pytest.fixture
def courier(hop: Hop, courier_to: Make) -> Courier:
    """One that never gives up by itself."""
    return courier_to(hop, NEVER_S)


def test_every_courier_is_here_and_says_why_it_cannot() -> None:
    assert set(KINDS) == set(get_args(CourierName))
    assert set(MEANING) == set(get_args(Step))
    for kind in KINDS.values():
        assert all(kind.cannot.values())
    assert set(who_can("takes it")) == set(KINDS)
    sending = {name for name, row in COURIERS.items() if row.leaves_by != "nowhere"}
    assert sending <= set(who_can("defers", "hangs up inside the message", "hangs up after the message"))


@pytest.mark.case(59)
@pytest.mark.parametrize(("name", "step"), courier_and_step(*MEANING))
def test_what_each_step_means(hop: Hop, courier_to: Make, name: CourierName, step: Step) -> None:
    """It is said once, and the next message goes."""
    courier = courier_to(hop, scaled_s(1) if step in STILL else NEVER_S)
    meaning = MEANING[step]
    hop.does(step)
    message = parcel(raw=LARGE)
    if meaning is None:
        sent = courier.send(message)
        assert (sent.courier, sent.refused, sent.deferred) == (name, (), ())
        assert sent.reply
    else:
        with pytest.raises(meaning) as raised:
            courier.send(message)
        assert type(raised.value) is meaning
        assert str(raised.value)
        if meaning is not DeliveryUncertain:
            assert hop.taken == []
    hop.does("takes it")
    before = len(hop.taken)
    courier.send(parcel())
    assert len(hop.taken) == before + 1


@pytest.mark.case(59)
@pytest.mark.parametrize(("name", "step"), courier_and_step(*STILL))
def test_abort_ends_what_is_in_hand_with_the_truth(hop: Hop, courier_to: Make, name: CourierName, step: Step) -> None:
    """Whatever was true before; and the next message goes."""
    waits = "an answer to abort at once" in KINDS[name].cannot
    courier = courier_to(hop, scaled_s(1) if waits else NEVER_S)
    hop.does(step)
    outcome = MEANING[step]
    assert outcome
    with aborted_once(hop.await_standstill, courier), pytest.raises(outcome) as raised:
        courier.send(parcel(raw=LARGE))
    assert type(raised.value) is outcome
    hop.does("takes it")
    courier.send(parcel())
    assert len(hop.taken) == 1


@pytest.mark.parametrize("name", KINDS)
def test_abort_rest_and_close_where_nothing_is_in_hand(
    hop: Hop, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as often as one likes, before the first message and after; then the next one goes all the same."""
    for _ in range(3):
        for let_go in (courier.abort, courier.rest, courier.close):
            let_go()
            let_go()
            courier.send(parcel())
    for module in (plunk, ses, smtp):
        monkeypatch.setattr(module, "IDLE_S", 0.0)
    courier.rest()
    courier.rest()
    courier.send(parcel())
    assert len(hop.taken) == 10


@pytest.mark.parametrize("name", who_can("refuses one recipient"))
def test_a_recipient_that_is_refused_beside_others(hop: Hop, courier: Courier) -> None:
    """The others have it, and it is said who has not; where there are no others it is refused."""
    refused = Address(hop.refused)
    sent = courier.send(parcel(recipients=(Address("to@example.net"), refused)))
    ((who, why),) = sent.refused
    assert (who, bool(why), sent.deferred) == (refused, True, ())
    with pytest.raises(DeliveryRefused):
        courier.send(parcel(recipients=(refused,)))
    assert [one.recipients for one in hop.taken] == [["to@example.net"]]


@pytest.mark.case(35)
@pytest.mark.parametrize("name", KINDS)
def test_the_envelope_is_the_jobs(hop: Hop, courier: Courier) -> None:
    """Header addresses are not sent to; Bcc is in nobody's copy."""
    raw = b"From: app@example.org\r\nTo: shown@example.net\r\nBcc: hidden@example.net\r\nSubject: s\r\n\r\nhi\r\n"
    recipients = (Address("to@example.net"), Address("hidden@example.net"))
    assert courier.send(parcel(raw=raw, recipients=recipients)).refused == ()
    (taken,) = hop.taken
    assert taken.recipients == list(recipients)
    assert b"hidden" not in taken.content


@pytest.mark.case(26)
@pytest.mark.parametrize("name", who_can("the return path"))
def test_the_return_path_is_ours(hop: Hop, courier: Courier) -> None:
    courier.send(parcel(sender=Address("-bounces@example.com")))
    courier.send(parcel())
    assert [one.sender for one in hop.taken] == ["-bounces@example.com", "app@example.org"]


@pytest.mark.case(16)
@pytest.mark.case(19)
@pytest.mark.case(46)
@pytest.mark.parametrize("name", who_can("the bytes"))
@pytest.mark.parametrize("body", BODIES)
def test_bytes_out_are_bytes_in(hop: Hop, courier: Courier, body: bytes) -> None:
    """All of them, behind our own fields."""
    raw = b"From: a@example.org\r\nDate: x\r\nMessage-ID: <1@x>\r\n\r\n" + body
    message = parcel(raw=raw)
    courier.send(message)
    (taken,) = hop.taken
    assert message.content.endswith(raw)
    assert taken.content == _ended(message.content, hop)


def _ended(content: bytes, hop: Hop) -> bytes:
    return content + b"\r\n" if hop.ends_with_line_end and not content.endswith(b"\r\n") else content


@pytest.mark.case(16)
@pytest.mark.parametrize("name", who_can("the bytes"))
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_bare_line_end_leaves(hop: Hop, courier: Courier, ending: bytes) -> None:
    """Whatever somebody takes for the end of a message."""
    smuggled = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<x@example.net>\r\nDATA\r\nhi\r\n"
    for raw in (RAW + b"hello" + ending, RAW + b"hello" + ending + smuggled):
        courier.send(parcel(raw=raw))
    for taken in hop.taken:
        assert not re.search(rb"(?<!\r)\n|\r(?!\n)", taken.content)
    assert len(hop.taken) == 2


@pytest.mark.case(46)
@pytest.mark.parametrize("name", who_can("the bytes"))
@pytest.mark.parametrize("signed", sorted(SIGNED))
def test_a_signature_of_the_application_still_verifies(hop: Hop, courier: Courier, signed: str) -> None:
    """Inline images, invitations, PGP/MIME and S/MIME arrive byte for byte."""
    courier.send(parcel(raw=SIGNED[signed]))
    (taken,) = hop.taken
    assert taken.content.endswith(SIGNED[signed])
    assert dkim.verify(taken.content, dnsfunc=TXT)
