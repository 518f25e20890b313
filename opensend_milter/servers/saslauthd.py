"""What Cyrus SASL asks saslauthd, answered by Dovecot: how a mail server that knows no Dovecot comes to its logins.

Sendmail makes a 535 of all but a yes, of a hang-up too, and lets its client wait for the answer: so it gets none as
long as nobody knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TypeVar

from opensend_milter.core import counting, maillog
from opensend_milter.core.counting import LoginOutcome
from opensend_milter.servers.dovecot import Dovecot, HangUp, OutageLog, key_of

log = logging.getLogger(__name__)

T = TypeVar("T")
ASK_AGAIN_S = 1.0


@dataclass(slots=True)
class Question:
    """One connection: name, password, service and realm, each behind its length; then yes or no.

    Who somebody is cannot be answered, so the name must be the key's id.
    """

    dovecot: Dovecot
    outages: OutageLog

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, unless who asks goes away before."""
        name, password, _, realm = [await _counted(reader) for _ in range(4)]
        began = time.monotonic()
        outcome: LoginOutcome = "outage"
        try:
            user = await _unless_gone(reader, self._user_of(key_of(password)))
            is_named = user is not None and user.encode() == name and not realm
            outcome = "accepted" if is_named else "refused"
        finally:
            took_ms = (time.monotonic() - began) * 1000
            maillog.login(outcome, client="unknown", mechanism=counting.OTHER, took_ms=took_ms)
        if user and not is_named:
            log.warning("a good key was refused: over saslauthd the user name must be the key's id")
        said = b"OK" if is_named else b"NO"
        writer.write(len(said).to_bytes(2) + said)
        await writer.drain()

    async def _user_of(self, key: str | None) -> str | None:
        while key:
            try:
                return await self.dovecot.ask(key, ("service=smtp",))
            except HangUp as error:
                self.outages.add(str(error))
                await asyncio.sleep(ASK_AGAIN_S)
        return None


async def _unless_gone(reader: asyncio.StreamReader, work: Coroutine[None, None, T]) -> T:
    """Return what comes of it; raise ConnectionResetError where the other side goes away, or goes on, before."""
    gone, done = asyncio.create_task(reader.read(1)), asyncio.create_task(work)
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        raise ConnectionResetError
    finally:
        gone.cancel()
        done.cancel()


async def _counted(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
