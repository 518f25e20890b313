"""What decides on messages may be replaced at any time: nobody is turned away, and what is replaced is let go soon."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from opensend_milter.app.succession import Deciding, Succession
from opensend_milter.core.model import Message, Outcome
from tests.unit.messages import message
from tests.waiting import await_true


class Decider:
    """Takes messages, as long as it is open, and answers when it is let."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0
        self.is_open = True

    def accept(self, taken: Message) -> Outcome:
        assert self.is_open
        self.asked += 1
        await_true(self.answers.is_set, "it may answer")
        assert self.is_open
        return taken.id

    def close(self) -> None:
        self.is_open = False

    @property
    def deciding(self) -> Deciding[Message, Outcome]:
        return Deciding(self.accept, self.close)


def test_the_one_in_charge_is_asked() -> None:
    first, second = Decider(), Decider()
    succession = Succession(first.deciding)
    mail = message()
    assert succession.accept(mail) == mail.id
    succession.replace(second.deciding)
    assert succession.accept(mail) == mail.id
    assert (first.asked, second.asked) == (1, 1)


def test_what_is_replaced_is_let_go_when_the_last_has_its_answer() -> None:
    first, second = Decider(), Decider()
    first.answers.clear()
    succession = Succession(first.deciding)
    mail = message()
    with ThreadPoolExecutor(1) as session:
        waits = session.submit(succession.accept, mail)
        await_true(lambda: first.asked, "the message is in")
        succession.replace(second.deciding)
        assert succession.accept(mail) == mail.id, "who comes now waits for nobody"
        assert first.is_open
        first.answers.set()
        assert waits.result() == mail.id
    await_true(lambda: not first.is_open, "it is let go")


@pytest.mark.case(82)
def test_however_often_it_is_replaced_nobody_is_turned_away_and_none_is_left_open() -> None:
    deciders = [Decider() for _ in range(200)]
    succession = Succession(deciders[0].deciding)
    is_over = threading.Event()

    def send() -> int:
        count = 0
        while not is_over.is_set():
            mail = message()
            assert succession.accept(mail) == mail.id
            count += 1
        return count

    with ThreadPoolExecutor(4) as sessions:
        counts = [sessions.submit(send) for _ in range(4)]
        for decider in deciders[1:]:
            succession.replace(decider.deciding)
        is_over.set()
        assert sum(count.result() for count in counts) == sum(decider.asked for decider in deciders)
    await_true(lambda: [one.is_open for one in deciders].count(True) == 1, "all but the last are let go")
    succession.close()
    assert not deciders[-1].is_open
