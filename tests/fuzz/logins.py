"""The auth gate with the real daemon: whatever Postfix or Dovecot say, nobody is let in whom Dovecot did not let in."""

from __future__ import annotations

import base64
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.conversation import all_answers
from tests.fuzz.grammar import KEY, RUNS, TEXT, cut, joined, several, words
from tests.fuzz.measures import Check
from tests.integration.gate_sides import Gate, Upstream
from tests.log_scan import Grown
from tests.waiting import patience_s

MOST_MB = 100
_THEN_DOVECOT = b"\n--dovecot says--\n"
"""What comes after it is Dovecot's answer to whatever it is asked."""
_WELCOME = f"OK\t1\tuser={KEY}\n".encode()

_RESPONSES = joined(several(TEXT | words("\0", "\0", "apikey", "os_0123456789abcdef"), 5)).map(base64.b64encode)
_PARAMETERS = (
    words("service=smtp", "nologin", "lip=127.0.0.1", "rip=192.0.2.7", "rip=", "secured", "user=x", "resp=")
    | joined(words("resp=", "resp=", "rip="), _RESPONSES)
    | RUNS
)  # fmt: skip
_ABOUT = several(joined(words("\t"), _PARAMETERS))
_MECHANISMS = words("PLAIN", "LOGIN", "plain", "XOAUTH2", "")
_PLAIN = base64.b64encode(b"\0anybody\0os_0123456789abcdef").decode()
_LOGIN = base64.b64encode(b"os_0123456789abcdef").decode()
_HONEST = words(
    f"AUTH\t1\tPLAIN\tservice=smtp\trip=192.0.2.7\tresp={_PLAIN}\n",
    f"AUTH\t1\tPLAIN\tservice=smtp\nCONT\t1\t{_PLAIN}\n",
    f"AUTH\t1\tLOGIN\tservice=smtp\nCONT\t1\t\nCONT\t1\t{_LOGIN}\n",
)
_LINES = (
    joined(words("AUTH\t"), words("1", "2", "") | RUNS, words("\t"), _MECHANISMS, _ABOUT, words("\n", "\n", "\r\n", ""))
    | joined(words("CONT\t"), words("1", "2", ""), words("\t"), _RESPONSES | RUNS, words("\n", "\n", "\t\n"))
    | joined(words("VERSION", "CPID", "CANCEL", "auth", "") | RUNS, _ABOUT, words("\n", ""))
    | _HONEST
)
_FIELDS = words(f"user={KEY}", "user=", "1", "2", "reason=no", "code=user_disabled", "nologin") | RUNS
_ANSWERS = joined(
    words("OK", "OK", "FAIL", "FAIL", "CONT", "MECH", "SPID", ""),
    several(joined(words("\t"), _FIELDS)),
    words("\n", "\n", ""),
) | words("FAIL\t1\ttemp\n", "FAIL\t1\tcode=temp_fail\n", _WELCOME.decode())
CONVERSATIONS = joined(
    cut(several(_LINES, 8)), words(_THEN_DOVECOT.decode()), words("FAIL\t1\n") | several(_ANSWERS, 3)
)
"""What a smtpd says, and what Dovecot would."""


@contextmanager
def opened() -> Iterator[Check]:
    """Start a gate of our own before a Dovecot that answers as told; yield what talks to it."""
    with tempfile.TemporaryDirectory(prefix="os-fuzz-", dir="/tmp") as place:
        gate = Gate(Path(place))
        gate.write_config(limits={"failed_per_minute": 0})
        with closing(Upstream(gate.dovecot_socket)) as dovecot, gate.running():
            yield _Talk(gate, dovecot).check


@dataclass
class _Talk:
    gate: Gate
    dovecot: Upstream
    log: Grown = field(default_factory=Grown)

    def check(self, octets: bytes) -> float:
        """Say it all, hear all answers, and look at what became of the gate."""
        said, _, self.dovecot.answer = octets.partition(_THEN_DOVECOT)
        self.dovecot.heard.clear()
        answers = self._answers(said)
        if not any(line.startswith(b"OK\t") for line in self.dovecot.answer.splitlines(keepends=True)):
            assert not any(line.startswith(b"OK") for line in answers.splitlines()), answers
        self._look_at_questions()
        self.dovecot.answer = _WELCOME
        with closing(self.gate.client()) as neighbour:
            assert neighbour.plain("os_neighbour").startswith("OK\t"), "a neighbour is not let in"
        assert b"Traceback" not in self.log.since_last(self.gate.directory / "gate.log")
        held_mb = self._held_mb()
        assert held_mb < MOST_MB, f"{held_mb} MB"
        return float(held_mb)

    def _answers(self, said: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as smtpd:
            smtpd.settimeout(patience_s())
            smtpd.connect(str(self.gate.socket))
            return all_answers(smtpd, said).partition(b"DONE\n")[2]

    def _look_at_questions(self) -> None:
        """Dovecot hears one question in one shape, whoever asks."""
        heard = self.dovecot.heard
        assert len(heard) % 3 == 0, heard
        for version, process, question in zip(heard[::3], heard[1::3], heard[2::3], strict=True):
            assert version == "VERSION\t1\t1"
            assert process.startswith("CPID\t")
            fields = question.split("\t")
            assert fields[:3] == ["AUTH", "1", "PLAIN"]
            assert [one for one in fields if one.startswith("resp=")] == fields[-1:]
            nobody, user, key = base64.b64decode(fields[-1].removeprefix("resp="), validate=True).split(b"\0")
            assert (nobody, user) == (b"", b"apikey")
            assert key == key.strip() != b""

    def _held_mb(self) -> int:
        assert self.gate.process
        lines = Path(f"/proc/{self.gate.process.pid}/status").read_text().splitlines()
        (held,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(held) // 1_024
