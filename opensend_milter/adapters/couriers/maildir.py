"""Courier into a Maildir: for a first try, and for tests."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from opensend_milter.config import Maildir
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.model import Parcel, Sent

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class MaildirCourier:
    """For any number of threads and processes: each message has a file of its own."""

    def __init__(self, maildir: Maildir) -> None:
        self._folder = maildir.folder

    def send(self, parcel: Parcel) -> Sent:
        """Write the envelope as header fields, then the content; the file appears as a whole."""
        if _CONTROL.search("".join((parcel.sender, *parcel.recipients))):
            raise DeliveryRefused("an address holds a control character")
        envelope = [f"Return-Path: <{parcel.sender}>", *(f"Delivered-To: {one}" for one in parcel.recipients)]
        head = "".join(f"{line}\r\n" for line in envelope).encode("utf-8", "surrogateescape")
        host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        name = f"{time.time_ns()}.P{os.getpid()}Q{parcel.email_id}.{host}"
        temporary, final = self._folder / "tmp" / name, self._folder / "new" / name
        try:
            self._write(temporary, head, parcel.content)
            temporary.rename(final)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise DeliveryDeferred(f"maildir.folder: {error.strerror or error}", outage=True) from error
        try:
            _flush(final.parent)
        except OSError as error:
            raise DeliveryUncertain(f"written, but not flushed: {error.strerror or error}") from error
        return Sent(courier="file", reply=f"kept as {name}", provider_id=name)

    def _write(self, path: Path, *pieces: bytes) -> None:
        for name in ("tmp", "new", "cur"):
            (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def rest(self) -> None:
        """Nothing stays open between messages."""

    def abort(self) -> None:
        """Do nothing: writing ends by itself."""

    def close(self) -> None:
        """Nothing stays open between messages."""


def _flush(folder: Path) -> None:
    """Write down the folder itself: without it a file may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
