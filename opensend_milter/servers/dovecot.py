"""Asks Dovecot for keys over one connection, and changes to another when that does not help.

Ours has a process for each connection (`service keys`), with connections of its own to Postgres: none that is dead, and
none that will be tried again only in minutes. It takes the place of the one before when it has greeted: one that begins
while the database is away may end before that.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

MAX_LINE_BYTES = 65_536
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.2)
"""After each temporary failure: another process, or another connection of the same one, may know more."""
PATIENCE_S = 3.0
"""With a process, at least: it answers a wrong key after two seconds."""
YOUNG_S = 1.0
"""A process that began so lately is not the reason of a failure."""
LONGEST_LIFE_S = 60.0
"""Of a connection: a Dovecot that was told to reload goes on as before for those that it has."""
NEVER = float("-inf")
_USER = "apikey"


class HangUp(Exception):  # noqa: N818  # it is what happens, not an error of somebody
    """Close the client's connection: Postfix answers 454."""


class PutOff(HangUp):
    """Dovecot says that it may know more in a moment."""


class Gone(HangUp):
    """The connection was given up, or has ended, before the answer came."""


@dataclass(slots=True)
class Dovecot:
    """All questions of one gate."""

    path: Path
    timeout_s: float
    _line: Line | None = None
    _opening: asyncio.Task[Line] | None = None
    # Dovecot takes a number that is in use for a fault, so it is ours and not the smtpd's.
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self, key: str, parameters: tuple[str, ...]) -> str | None:
        """Return the login name of a good key, None for a bad one; raise HangUp when there is no answer."""
        pauses = iter(PAUSES_S)
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    try:
                        return await self._ask(await self._best(), key, parameters)
                    except Gone:
                        continue
                    except PutOff:
                        if (pause_s := next(pauses, None)) is None:
                            raise
                    await asyncio.sleep(pause_s)
        except TimeoutError as error:
            raise HangUp(f"no answer within {self.timeout_s:g} s") from error
        except OSError as error:
            raise HangUp(f"{self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of what is open."""
        if self._opening:
            self._opening.cancel()
        if self._line:
            self._line.end(Gone())

    async def _ask(self, line: Line, key: str, parameters: tuple[str, ...]) -> str | None:
        asked_at = time.monotonic()
        try:
            # So that there is as much time for another process.
            async with asyncio.timeout(max(PATIENCE_S, self.timeout_s / 2)):
                return await line.ask(key, parameters)
        except (TimeoutError, asyncio.CancelledError) as error:
            # One that answers others meanwhile is busy, and not stuck.
            line.is_doubted |= line.answered_at < asked_at
            if isinstance(error, TimeoutError):
                raise Gone from None
            raise

    async def _best(self) -> Line:
        """Return the connection that there is, having another opened where it is of little use."""
        line = self._line if self._line and not self._line.is_over else None
        if line and not line.is_spent:
            return line
        if not self._opening or self._opening.done():
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(lambda opening: opening.cancelled() or opening.exception())
        if line:
            return line
        return await asyncio.shield(self._opening)

    async def _open(self) -> Line:
        async with asyncio.timeout(self.timeout_s):
            reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_LINE_BYTES)
            line = Line(reader, writer, next(self._numbers) % 2**31)
            try:
                await line.greeting
            except BaseException:
                line.end(Gone())
                raise
        before, self._line = self._line, line
        if before:
            before.end(Gone())
        return line


class Line:
    """One connection, for any number of questions at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.greeting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered_at = NEVER
        self.is_doubted = self.is_over = False
        self._opened_at = time.monotonic()
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[str | None]] = {}
        writer.write(f"VERSION\t1\t1\nCPID\t{number}\n".encode())
        self._listening = asyncio.create_task(self._listen(reader))

    @property
    def is_spent(self) -> bool:
        """Tell whether another is to take its place."""
        return time.monotonic() - self._opened_at > (YOUNG_S if self.is_doubted else LONGEST_LIFE_S)

    async def ask(self, key: str, parameters: tuple[str, ...]) -> str | None:
        """Return the login name of a good key, None for a bad one; raise what keeps it from being told."""
        if self.is_over:
            raise Gone
        number = str(next(self._numbers))
        response = base64.b64encode(f"\0{_USER}\0{key}".encode()).decode()
        about = "".join(f"\t{one}" for one in parameters)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._writer.write(f"AUTH\t{number}\tPLAIN{about}\tresp={response}\n".encode())
        try:
            return await answer
        finally:
            del self._waiting[number]

    def end(self, error: HangUp) -> None:
        """Hang up; who waits is told so."""
        self.is_over = True
        self._writer.close()
        awaited: list[asyncio.Future[None] | asyncio.Future[str | None]] = [self.greeting, *self._waiting.values()]
        for answer in awaited:
            if not answer.done():
                answer.set_exception(error)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        error = HangUp("Dovecot closed the connection")
        try:
            while (line := await reader.readline()).endswith(b"\n"):  # a line that is cut is no answer
                self._hear(*line.decode("utf-8", errors="replace").rstrip("\n").split("\t"))
        except ValueError:
            error = HangUp(f"a line over {MAX_LINE_BYTES} bytes")
        except OSError as broken:
            error = HangUp(f"Dovecot's connection: {broken.strerror}")
        finally:
            # One that was of use has ended with its process, and the next may be good.
            self.end(error if self.answered_at == NEVER else Gone())

    def _hear(self, kind: str, number: str = "", *fields: str) -> None:
        if kind == "DONE" and not self.greeting.done():
            self.greeting.set_result(None)
        if kind not in {"OK", "FAIL"}:
            return
        verdict = _verdict(kind, fields)
        self.is_doubted = isinstance(verdict, PutOff)
        if not self.is_doubted:
            self.answered_at = time.monotonic()
        answer = self._waiting.get(number)
        if answer and not answer.done():
            answer.set_exception(verdict) if isinstance(verdict, HangUp) else answer.set_result(verdict)


def _verdict(kind: str, fields: tuple[str, ...]) -> str | HangUp | None:
    """Return the login name of a good key, None for a bad one, or why there is neither."""
    if kind == "OK":
        user = next((one.removeprefix("user=") for one in fields if one.startswith("user=")), "")
        return user or HangUp("an OK without a user")
    if "temp" in fields or "code=temp_fail" in fields:
        return PutOff("temporary failure, see Dovecot's log")
    return None
