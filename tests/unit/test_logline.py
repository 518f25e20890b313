"""Lines of the log that are written together: all of them, in their order, by one write."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator

import pytest

from opensend_milter.core.logline import Lines, together

log = logging.getLogger("together")
Written = Callable[[], list[str]]


@pytest.fixture
def written() -> Iterator[Written]:
    """What each write since the last call brought: this socket keeps them apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def taken() -> list[str]:
        found = []
        while True:
            try:
                found.append(theirs.recv(9_000, socket.MSG_DONTWAIT).decode())
            except BlockingIOError:
                return found

    with ours, theirs, open(ours.fileno(), "w", encoding="utf-8", closefd=False) as stream:
        handler = Lines(stream)
        logging.getLogger().addHandler(handler)
        yield taken
        logging.getLogger().removeHandler(handler)


def test_a_line_by_itself_is_written_at_once(written: Written) -> None:
    log.warning("one")
    assert written() == ["one\n"]


def test_lines_that_belong_together_are_one_write(written: Written) -> None:
    with together():
        log.warning("one")
        log.warning("two")
        assert written() == []
    log.warning("three")
    assert written() == ["one\ntwo\n", "three\n"]


def test_no_more_is_one_write_than_a_pipe_takes_whole(written: Written) -> None:
    """Else lines of two processes are torn apart; each write ends where a line does."""
    lines = [f"{number} {'x' * 1_500}" for number in range(5)]
    with together():
        for line in lines:
            log.warning(line)
    found = written()
    assert [len(one.splitlines()) for one in found] == [2, 2, 1]
    assert "".join(found).splitlines() == lines


def test_what_was_noted_before_a_fault_is_written(written: Written) -> None:
    with pytest.raises(ZeroDivisionError), together():  # noqa: PT012  # both are the fault
        log.warning("one")
        _ = 1 // 0
    assert written() == ["one\n"]
