"""The courier that writes a Maildir."""

from __future__ import annotations

import errno
import mailbox
import os
import threading
from pathlib import Path

import pytest

from opensend_milter.adapters.couriers.maildir import MaildirCourier
from opensend_milter.config import Maildir
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import Address
from tests.jobs import parcel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "maildir"


def written(folder: Path) -> list[bytes]:
    assert list((folder / "tmp").iterdir()) == []
    return [path.read_bytes() for path in sorted((folder / "new").iterdir())]


def test_a_maildir_that_others_can_read(folder: Path) -> None:
    """With all recipients; a second attempt is a second file."""
    courier = MaildirCourier(Maildir(folder=folder))
    both = (Address("to@example.net"), Address("\u043f\u043e\u0447\u0442\u0430@example.net"))
    replies = {courier.send(parcel(recipients=both)).provider_id for _ in range(2)}
    assert set(mailbox.Maildir(folder, create=False).keys()) == replies
    for path in (folder / "new").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
        assert "Delivered-To: \u043f\u043e\u0447\u0442\u0430@example.net" in path.read_text("utf-8")


def umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def test_many_threads_write_at_once(folder: Path) -> None:
    """No file is taken for another."""

    def write() -> None:
        courier = MaildirCourier(Maildir(folder=folder))
        for _ in range(25):
            courier.send(parcel(email_id=new_email_id()))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written(folder)) == 100


@pytest.mark.parametrize("odd", ["x@example.net\r\nBcc: y@example.net", "x\0@example.net"])
def test_an_address_with_a_line_end_is_not_written(folder: Path, odd: str) -> None:
    """It would be a field of its own."""
    for message in (parcel(recipients=(Address(odd),)), parcel(sender=Address(odd))):
        with pytest.raises(DeliveryRefused):
            MaildirCourier(Maildir(folder=folder)).send(message)
    assert not folder.exists()


def test_a_full_disk_is_an_outage() -> None:
    """Nothing is left behind that looks like a message."""
    with pytest.raises(DeliveryDeferred, match=os.strerror(errno.ENOENT)) as raised:
        MaildirCourier(Maildir(folder=Path("/proc/no/such"))).send(parcel())
    assert raised.value.outage


@pytest.mark.case(59)
@pytest.mark.parametrize(("call", "outcome"), [("file", DeliveryDeferred), ("folder", DeliveryUncertain)])
def test_a_disk_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, outcome: type[Exception]) -> None:
    """Before the file has its place it is not there; after that nobody can tell."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == (call == "folder"):  # noqa: PTH112
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(outcome, match="No space left"):
        MaildirCourier(Maildir(folder=folder)).send(parcel())
    assert len(written(folder)) == (1 if call == "folder" else 0)
