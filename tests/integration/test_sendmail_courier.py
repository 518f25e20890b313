"""The sendmail courier against programs that end in each way, and against Postfix's own."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest

from opensend_milter.adapters.couriers.sendmail import SendmailCourier
from opensend_milter.config import Sendmail
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain, OpensendError
from opensend_milter.core.model import Address
from tests.integration.courier_messages import SIGNED, TXT
from tests.jobs import RAW, parcel
from tests.waiting import NEVER_S, await_true, scaled_s

LARGE = RAW + (b"x" * 76 + b"\r\n") * 20_000
POSTFIX = Path("/usr/sbin/sendmail")


@dataclass(frozen=True, slots=True)
class Program:
    """A stand-in that writes down how it was called."""

    folder: Path

    def courier(self, script: str, timeout_s: float = NEVER_S) -> SendmailCourier:
        path = self.folder / "sendmail"
        path.write_text(
            f'#!/bin/sh\nfor one in "$@"; do printf \'%s\\0\' "$one"; done > {self.folder}/args\n{script}\n'
        )
        path.chmod(0o755)
        return SendmailCourier(Sendmail(path=path, timeout_s=timeout_s))

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "args").read_text().split("\0")[:-1]

    @property
    def message(self) -> bytes:
        return (self.folder / "message").read_bytes()

    @property
    def takes_all(self) -> str:
        return f"cat > {self.folder}/message"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("status", "outcome", "outage"),
    [
        (1, DeliveryDeferred, False),
        (os.EX_USAGE, DeliveryDeferred, False),
        (os.EX_DATAERR, DeliveryRefused, None),
        (os.EX_NOINPUT, DeliveryDeferred, False),
        (os.EX_NOUSER, DeliveryRefused, None),
        (os.EX_NOHOST, DeliveryRefused, None),
        (os.EX_UNAVAILABLE, DeliveryDeferred, False),
        (os.EX_SOFTWARE, DeliveryDeferred, False),
        (os.EX_OSERR, DeliveryDeferred, True),
        (os.EX_OSFILE, DeliveryDeferred, True),
        (os.EX_CANTCREAT, DeliveryDeferred, True),
        (os.EX_IOERR, DeliveryDeferred, False),
        (os.EX_TEMPFAIL, DeliveryDeferred, False),
        (os.EX_PROTOCOL, DeliveryDeferred, False),
        (os.EX_NOPERM, DeliveryDeferred, True),
        (os.EX_CONFIG, DeliveryDeferred, True),
        (127, DeliveryDeferred, False),
        (128 + signal.SIGKILL, DeliveryUncertain, None),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_what_each_exit_code_means(
    program: Program, status: int, outcome: type[OpensendError], *, outage: bool | None, reads: bool
) -> None:
    """Also where it did not read the message; then a signal has ended it before it could have it."""
    courier = program.courier(f"{program.takes_all if reads else ''}\necho 'sendmail: fatal: full' >&2\nexit {status}")
    if not reads and outcome is DeliveryUncertain:
        outcome = DeliveryDeferred
    with pytest.raises(outcome) as raised:
        courier.send(parcel(raw=LARGE))
    assert re.search(r"ended by signal 9$|: exit \d+: sendmail: fatal: full$", str(raised.value))
    if isinstance(raised.value, DeliveryDeferred) and outage is not None:
        assert raised.value.outage is outage


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("kill -TERM $$", DeliveryDeferred),
        ("cat > /dev/null; kill -TERM $$", DeliveryUncertain),
        ("exec sleep 3600", DeliveryDeferred),
        ("exec < /dev/null; sleep 3600", DeliveryDeferred),
        ("cat > /dev/null; sleep 3600", DeliveryUncertain),
        ("cat > /dev/null; sleep 3600 & wait", DeliveryUncertain),
        ("head -c 100000 > /dev/null; sleep 3600", DeliveryDeferred),
        ("exit 0", DeliveryDeferred),
    ],
)
def test_an_end_without_an_answer(program: Program, script: str, outcome: type[OpensendError]) -> None:
    """It can have the message only when it has seen its end. What it started ends with it."""
    timeout_s = scaled_s(1) if "sleep" in script else NEVER_S
    courier = program.courier(f"echo $$ > {program.folder}/group\n{script}", timeout_s)
    with pytest.raises(outcome):
        courier.send(parcel(raw=LARGE))
    group = int((program.folder / "group").read_text())
    await_true(lambda: not lives(group), "no process of the group lives on")


def lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return any(not state.startswith("Z") for state in states.stdout.split())


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """An operator must act; no message is at fault."""
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    for name in ("none", "not-executable"):
        with pytest.raises(DeliveryDeferred, match=r"sendmail\.path") as raised:
            SendmailCourier(Sendmail(path=tmp_path / name)).send(parcel())
        assert raised.value.outage


def test_a_large_message_and_a_talkative_program(program: Program) -> None:
    """Neither waits for the other; its first line is the reply."""
    courier = program.courier(f"echo queued; yes noise | head -c 300000 >&2; {program.takes_all}")
    message = parcel(raw=LARGE)
    assert courier.send(message).reply == "queued"
    assert program.message == message.content


@pytest.mark.case(26)
def test_how_it_is_called(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The return path is ours; recipients are operands, whatever they look like; no environment of ours."""
    courier = program.courier(f"{program.takes_all}\nenv > {program.folder}/env; exit 0")
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    recipients = tuple(map(Address, ("-X/tmp/log@example.net", '"a, b"@example.net', "`id`$HOME@example.net")))
    courier.send(parcel(sender=Address("-bounces@example.com"), recipients=recipients))
    assert program.arguments == ["-i", "-f", "-bounces@example.com", "--", *recipients]
    assert "SECRET_OF_OURS" not in (program.folder / "env").read_text()


def test_dots_that_an_address_has_only_in_quotes(program: Program) -> None:
    odd = tuple(map(Address, (".a@example.net", '"b."@example.net')))
    program.courier(program.takes_all).send(parcel(recipients=odd))
    assert program.arguments[3:] == ["--", '".a"@example.net', '"b."@example.net']


def test_what_was_stored_before_domains_were_mapped_still_goes(program: Program) -> None:
    earlier = tuple(map(Address, ("jürgen@EXÄMPLE.net", "a@ｅxample.net")))
    program.courier(program.takes_all).send(parcel(recipients=earlier))
    assert program.arguments[3:] == ["--", *earlier]


@pytest.mark.parametrize(
    "odd",
    [
        "-bs",
        "a@example.net, b@example.net",
        "alice@example.org)bob@example.com",
        "x@example.net\nRSET",
        "x@example.net\0",
        "Name <a@example.net>",
        "root",
        "",
    ],
)
def test_an_address_that_would_be_read_as_another_one(program: Program, odd: str) -> None:
    """Sendmail takes each argument for a list of addresses."""
    courier = program.courier(program.takes_all)
    sent = courier.send(parcel(recipients=(Address("to@example.net"), Address(odd))))
    assert [address for address, _ in sent.refused] == [odd]
    assert program.arguments[3:] == ["--", "to@example.net"]
    with pytest.raises(DeliveryRefused):
        courier.send(parcel(recipients=(Address(odd),)))


@pytest.fixture(scope="module")
def postfix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue directory of our own, and a sendmail that writes into it; no Postfix runs."""
    if not POSTFIX.exists() or os.geteuid() != 0:
        pytest.skip("needs Postfix's sendmail, and root")
    folder = tmp_path_factory.mktemp("postfix")
    for part in folder.parents:
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    folder.chmod(0o755)
    queue = folder / "queue"
    for name in ("maildrop", "public", "pid"):
        (queue / name).mkdir(parents=True)
    shutil.chown(queue / "maildrop", "postfix", "postdrop")
    (queue / "maildrop").chmod(0o1733)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, "postfix", "postfix")
    (folder / "main.cf").write_text(
        f"compatibility_level = 3.6\nqueue_directory = {queue}\ndata_directory = {data}\nmyhostname = mx.example.com\n"
        "message_size_limit = 100000\nmailbox_size_limit = 0\n"
    )
    (folder / "master.cf").write_text("")
    path = folder / "sendmail"
    path.write_text(f'#!/bin/sh\nexec {POSTFIX} -C {folder} "$@"\n')
    path.chmod(0o755)
    return path


def dropped(postfix: Path) -> tuple[list[str], bytes]:
    """Return envelope records and content of the one message in the queue, and take it out."""
    (path,) = (postfix.parent / "queue" / "maildrop").iterdir()
    command = ["postcat", "-c", str(postfix.parent)]
    envelope = subprocess.run([*command, "-e", str(path)], capture_output=True, text=True, check=True).stdout
    content = subprocess.run([*command, "-bh", str(path)], capture_output=True, check=True).stdout
    path.unlink()
    return re.findall(r"^(?:sender|recipient): .*$", envelope, re.MULTILINE), content


@pytest.mark.case(16)
@pytest.mark.case(46)
@pytest.mark.parametrize("name", sorted(SIGNED))
def test_postfix_keeps_the_bytes(postfix: Path, name: str) -> None:
    """CRLF becomes its own line end; with CRLF again, as it sends it, the application's signature verifies."""
    SendmailCourier(Sendmail(path=postfix)).send(parcel(raw=SIGNED[name], sender=Address("bounces@example.com")))
    envelope, content = dropped(postfix)
    assert envelope == ["sender: bounces@example.com", "recipient: to@example.net"]
    assert b"\r" not in content
    assert content.replace(b"\n", b"\r\n").endswith(SIGNED[name])
    assert dkim.verify(content.replace(b"\n", b"\r\n"), dnsfunc=TXT)


def test_postfix_takes_odd_addresses_and_no_sender(postfix: Path) -> None:
    """Each argument is one recipient; an empty sender is the null return path."""
    recipients = tuple(map(Address, ("-bs@example.net", "a%b@example.net", '"a, b"@example.net', "u@[192.0.2.1]")))
    courier = SendmailCourier(Sendmail(path=postfix))
    courier.send(dataclasses.replace(parcel(recipients=recipients), sender=Address("")))
    envelope, _ = dropped(postfix)
    # Postfix keeps addresses without their quotes.
    said = ["", *(recipient.replace('"', "") for recipient in recipients)]
    assert [line.partition(": ")[2] for line in envelope] == said
    with pytest.raises(DeliveryDeferred, match=r"exit 75: .*too large"):
        courier.send(parcel(raw=LARGE))
