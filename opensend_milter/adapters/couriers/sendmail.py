"""Courier over the host's sendmail program: it has the message when it has seen the end of its input."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO

from opensend_milter.config import Sendmail
from opensend_milter.core.address import envelope_address, mapped, quoted
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.model import Address, Parcel, Sent

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_PIECE_BYTES = 65_536
_REASON_BYTES = 1_000
_NOT_AN_ARGUMENT = "5.1.3 sendmail would read this address as another one"
_BY_SIGNAL = 128
"""A shell says this much more than the signal's number."""


class SendmailCourier:
    """For one thread: one process per message, in a group of its own."""

    def __init__(self, sendmail: Sendmail) -> None:
        self._path = sendmail.path
        self._timeout_s = sendmail.timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over."""
        recipients = [recipient for recipient in parcel.recipients if _is_argument(recipient)]
        refused = tuple((other, _NOT_AN_ARGUMENT) for other in parcel.recipients if other not in recipients)
        if not recipients or not (parcel.sender == "" or _is_argument(parcel.sender)):
            raise DeliveryRefused(_NOT_AN_ARGUMENT)
        content = parcel.content if parcel.content.endswith(b"\r\n") else parcel.content + b"\r\n"
        with tempfile.TemporaryFile() as errors:
            reply = self._run(
                [str(self._path), "-i", "-f", parcel.sender, "--", *map(quoted, recipients)], content, errors
            )
        return Sent(courier="sendmail", reply=reply, refused=refused)

    def rest(self) -> None:
        """Nothing runs between messages."""

    def abort(self) -> None:
        """Kill what runs, and what it has started."""
        with self._lock:
            if self._process and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Nothing runs between messages."""

    def _run(self, command: list[str], content: bytes, errors: IO[bytes]) -> str:
        deadline = time.monotonic() + self._timeout_s
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryDeferred(f"sendmail.path: {self._path}: {error.strerror}", outage=True) from error
        with self._lock:
            self._process = process
        try:
            has_all = _feed(process, content, deadline)
            status = self._status(process, deadline, has_all=has_all)
        finally:
            self.abort()
            process.wait()
            with self._lock:
                self._process = None
            # Only now: a program that still lived would take the end of its input for the end of the message.
            with suppress(OSError):
                _stdin(process).close()
        if status:
            raise _failure(status, _first_line(errors), has_all=has_all)
        if not has_all:
            raise DeliveryDeferred("sendmail did not read the message to its end")
        return _first_line(errors) or "exit 0"

    def _status(self, process: subprocess.Popen[bytes], deadline: float, *, has_all: bool) -> int:
        if has_all:
            _stdin(process).close()
        try:
            # One that has closed its input before the end is about to say why.
            return process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        text = f"sendmail was killed after {self._timeout_s:g} s"
        if has_all:
            raise DeliveryUncertain(text)
        raise DeliveryDeferred(text)


def _feed(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> bool:
    """Write the message; tell whether all of it was read or lies in the pipe."""
    descriptor = _stdin(process).fileno()
    os.set_blocking(descriptor, False)
    view = memoryview(content)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while view:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            return False
        try:
            view = view[os.write(descriptor, view[:_PIECE_BYTES]) :]
        except BrokenPipeError:
            return False
    return True


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise AssertionError
    return process.stdin


def _is_argument(address: Address) -> bool:
    """Tell whether it is one plain mailbox: sendmail takes each argument for a list of addresses, comments and all."""
    found = envelope_address(address)
    return found is not None and quoted(found) == mapped(quoted(address))


def _first_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    text = errors.read(_REASON_BYTES).decode("utf-8", "replace").strip()
    return text.splitlines()[0].strip() if text else ""


def _failure(status: int, reason: str, *, has_all: bool) -> DeliveryDeferred | DeliveryRefused | DeliveryUncertain:
    if status < 0 or status > _BY_SIGNAL:
        text = f"sendmail ended by signal {-status if status < 0 else status - _BY_SIGNAL}"
        return DeliveryUncertain(text) if has_all else DeliveryDeferred(text)
    text = f"sendmail: exit {status}: {reason}"
    match status:
        case os.EX_DATAERR | os.EX_NOUSER | os.EX_NOHOST:
            return DeliveryRefused(text)
        case os.EX_OSERR | os.EX_OSFILE | os.EX_CANTCREAT | os.EX_NOPERM | os.EX_CONFIG:
            return DeliveryDeferred(text, outage=True)
        case _:
            return DeliveryDeferred(text)
