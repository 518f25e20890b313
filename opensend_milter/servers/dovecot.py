"""What Dovecot is asked about a key: whose it is, or that nobody knows at the moment."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 65_536
MAX_PASSWORD_BYTES = 1_024
"""Far above any key: what is longer is refused without asking."""
_USER = "apikey"
_WHITE = "\ufeff"
"""JavaScript's trim(), with which OpenSend reads keys, takes this for white space; Python's strip() does not."""
_LOG_EVERY_S = 1.0
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.2)
"""After each temporary failure: Dovecot finds out only by asking that a connection to Postgres is dead, one by one."""


class HangUp(Exception):  # noqa: N818  # it is what happens, not an error of somebody
    """Close the client's connection: Postfix answers 454."""


class PutOff(HangUp):
    """Dovecot says that it may know more in a moment."""


@dataclass(slots=True)
class OutageLog:
    """Says that logins are put off, at most once a second, with their number."""

    now: Callable[[], float] = time.monotonic
    count: int = 0
    said_at: float = field(default=float("-inf"))

    def add(self, reason: str) -> None:
        """Count one login that was put off."""
        self.count += 1
        if self.now() - self.said_at >= _LOG_EVERY_S:
            log.warning("dovecot gives no answer: %d logins put off; the last: %s", self.count, reason)
            self.said_at, self.count = self.now(), 0


def key_of(password: bytes) -> str | None:
    """Return the key in a password, or None for what can never be one."""
    try:
        key = password.decode("utf-8").strip().strip(_WHITE).strip()
    except ValueError:
        return None
    return key if 0 < len(key.encode()) <= MAX_PASSWORD_BYTES else None


@dataclass(slots=True)
class Dovecot:
    """Asks Dovecot over a connection of its own each time, so that a restarted one is used at once."""

    path: Path
    timeout_s: float
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self, key: str, parameters: tuple[str, ...]) -> str | None:
        """Return the login name of a good key, None for a bad one; raise HangUp when there is no answer."""
        try:
            async with asyncio.timeout(self.timeout_s):
                for pause_s in PAUSES_S:
                    with contextlib.suppress(PutOff):
                        return await self._ask_once(key, parameters)
                    await asyncio.sleep(pause_s)
                return await self._ask_once(key, parameters)
        except TimeoutError as error:
            raise HangUp(f"no answer within {self.timeout_s:g} s") from error
        except OSError as error:
            raise HangUp(f"{self.path}: {error.strerror}") from error
        except ValueError as error:
            raise HangUp(f"a line over {MAX_LINE_BYTES} bytes") from error

    async def _ask_once(self, key: str, parameters: tuple[str, ...]) -> str | None:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_LINE_BYTES)
        try:
            writer.write(self._request(key, parameters))
            return await _verdict(reader)
        finally:
            writer.close()

    def _request(self, key: str, parameters: tuple[str, ...]) -> bytes:
        # Dovecot takes a number that is in use for a fault, so it is ours and not the smtpd's.
        number = next(self._numbers) % 2**31
        response = base64.b64encode(f"\0{_USER}\0{key}".encode()).decode()
        about = "".join(f"\t{one}" for one in parameters)
        return f"VERSION\t1\t1\nCPID\t{number}\nAUTH\t1\tPLAIN{about}\tresp={response}\n".encode()


async def _verdict(reader: asyncio.StreamReader) -> str | None:
    while (line := await reader.readline()).endswith(b"\n"):  # a line that is cut is no answer
        kind, *fields = line.decode("utf-8", errors="replace").rstrip("\n").split("\t")
        match kind:
            case "OK":
                user = next((one.removeprefix("user=") for one in fields if one.startswith("user=")), "")
                if not user:
                    raise HangUp("an OK without a user")
                return user
            case "FAIL":
                if "temp" in fields or "code=temp_fail" in fields:
                    raise PutOff("temporary failure, see Dovecot's log")
                return None
            case _:
                continue
    raise HangUp("Dovecot closed the connection")
