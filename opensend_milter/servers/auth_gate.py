"""Between Postfix and Dovecot: a temporary failure becomes a hang-up, which Postfix answers with 454.

Postfix itself would answer 535 to a database outage and make clients give up. The greeting is ours, so a Dovecot that
is down or restarts never stops smtpd. What Dovecot is asked is always the same: PLAIN, the constant user `apikey`,
and the password without white space around it. Cyrus SASL may be in Postfix's place: see saslauthd.py.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from opensend_milter.config import Auth
from opensend_milter.core import counting, maillog
from opensend_milter.core.counting import LoginOutcome
from opensend_milter.core.rates import Allowance
from opensend_milter.servers import saslauthd
from opensend_milter.servers.activation import passed_or
from opensend_milter.servers.dovecot import MAX_LINE_BYTES, Dovecot, HangUp, OutageLog, key_of
from opensend_milter.servers.unix_socket import BACKLOG, group_of, listening_on

log = logging.getLogger(__name__)

_REFUSED = "reason=the password must be an API key"
_MECHANISMS = ("PLAIN", "LOGIN")
_ASK_USER, _ASK_PASSWORD = b"Username:", b"Password:"


class Throttled(HangUp):
    """Too many logins of this client have failed."""


@dataclass(slots=True)
class Dialogue:
    """One AUTH command in the middle of its questions. Postfix has one at a time on a connection."""

    request: str
    mechanism: str
    parameters: tuple[str, ...]
    user_known: bool

    @property
    def client_address(self) -> str:
        return next((one.removeprefix("rip=") for one in self.parameters if one.startswith("rip=")), "")


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(
    settings: Auth,
    ready: Callable[[], None],
    *,
    failed_per_minute: int,
    reload: Callable[[Gate], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once Postfix may connect, `reload` on SIGHUP."""
    group = group_of(settings.socket_group, key="auth.socket_group")
    # From here on the socket is to be seen: whoever ends us now must find it taken away.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    gate = Gate(settings, failed_per_minute)
    with passed_or("auth-gate", lambda: listening_on(settings.socket, group, key="auth.socket")) as listener:
        log.info("listening on %s, asking %s", settings.socket, settings.dovecot_socket)
        asyncio.run(_serve(listener, gate, ready, reload))
    log.info("stopped")


async def _serve(
    listener: socket.socket, gate: Gate, ready: Callable[[], None], reload: Callable[[Gate], None] | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if reload:
        loop.add_signal_handler(signal.SIGHUP, reload, gate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGHUP))
    server = await asyncio.start_unix_server(gate.attend, sock=listener, limit=MAX_LINE_BYTES, backlog=BACKLOG)
    ready()
    await stop.wait()
    server.close()
    # A login in hand is cut off: Postfix answers 454.
    await gate.close()


class Gate:
    """All connections of one listening socket."""

    def __init__(self, settings: Auth, failed_per_minute: int) -> None:
        self._protocol = settings.protocol
        self._dovecot = Dovecot(settings.dovecot_socket, settings.timeout_s)
        self._failed = Allowance(failed_per_minute, time.monotonic)
        self._outages = OutageLog()
        self._attending: set[asyncio.Task[None]] = set()
        self._connections = itertools.count(1)

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one who asks until he, or an outage, ends the connection."""
        task = asyncio.current_task()
        if task:
            self._attending.add(task)
            counting.auth_connections(len(self._attending))
        try:
            match self._protocol:
                case "dovecot":
                    writer.write(_greeting(next(self._connections)))
                    await Client(self._dovecot, self._failed).answer(reader, writer)
                case "saslauthd":
                    await saslauthd.Question(self._dovecot, self._outages).answer(reader, writer)
        except Throttled:
            log.debug("a login was put off: too many have failed")
        except HangUp as error:
            self._outages.add(str(error))
        except (ConnectionError, EOFError, ValueError):
            log.debug("a client's connection ended: broken, or a line over %d bytes", MAX_LINE_BYTES)
        except asyncio.CancelledError:
            log.debug("a client's connection ended: stopping")
        finally:
            writer.close()
            if task:
                self._attending.discard(task)
                counting.auth_connections(len(self._attending))

    def set_limits(self, timeout_s: float, failed_per_minute: int) -> None:
        """Go on with others; who failed too often is remembered."""
        self._dovecot.timeout_s = timeout_s
        self._failed.per_minute = failed_per_minute

    async def close(self) -> None:
        """End all connections."""
        for task in self._attending:
            task.cancel()
        await asyncio.gather(*self._attending, return_exceptions=True)


def _greeting(connection: int) -> bytes:
    lines = (
        "VERSION\t1\t2",
        "MECH\tPLAIN\tplaintext",
        "MECH\tLOGIN\tplaintext",
        f"SPID\t{os.getpid()}",
        f"CUID\t{connection}",
        f"COOKIE\t{secrets.token_hex(16)}",
        "DONE",
    )
    return ("\n".join(lines) + "\n").encode()


@dataclass(slots=True)
class Client:
    """One connection of Postfix: a line in, at most one line out."""

    dovecot: Dovecot
    failed: Allowance
    pending: Dialogue | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer line by line: while Dovecot is asked nothing else is read, so nothing piles up."""
        # readuntil() would leave an over-long line in the buffer; readline() raises ValueError and drops it.
        while line := await reader.readline():
            reply = await self._reply_to(line)
            if reply:
                writer.write(reply.encode() + b"\n")
                await writer.drain()

    async def _reply_to(self, line: bytes) -> str | None:
        command, *fields = line.decode("utf-8", errors="replace").rstrip("\n").split("\t")
        match command, fields:
            case "AUTH", [request, mechanism, *parameters]:
                return await self._begin(request, mechanism.upper(), parameters)
            case "CONT", [request, response] if self.pending and self.pending.request == request:
                return await self._go_on(self.pending, response)
            case _:
                return None  # VERSION and CPID, and what a later Postfix may say

    async def _begin(self, request: str, mechanism: str, parameters: list[str]) -> str | None:
        response = next((one.removeprefix("resp=") for one in parameters if one.startswith("resp=")), None)
        about = tuple(one for one in parameters if not one.startswith("resp="))
        self.pending = Dialogue(request, mechanism, about, user_known=False)
        match mechanism, response:
            case "PLAIN", None:
                return _question(request, b"")
            case "LOGIN", None:
                return _question(request, _ASK_USER)
            case (("PLAIN" | "LOGIN"), str(text)):
                return await self._go_on(self.pending, text)
            case _:
                return await self._end(self.pending, None)

    async def _go_on(self, dialogue: Dialogue, response: str) -> str:
        if dialogue.mechanism == "LOGIN" and not dialogue.user_known:
            # Whatever name it is: not even decoded, because the key says who it is.
            dialogue.user_known = True
            return _question(dialogue.request, _ASK_PASSWORD)
        return await self._end(dialogue, key_in(response, plain=dialogue.mechanism == "PLAIN"))

    async def _end(self, dialogue: Dialogue, key: str | None) -> str:
        """Answer a login; without a key nobody is asked."""
        self.pending, client, began = None, dialogue.client_address, time.monotonic()
        # Whatever cuts it off, our own end too: Postfix answers 454.
        outcome: LoginOutcome = "outage"
        try:
            if self.failed.wait_s(client):
                outcome = "throttled"
                raise Throttled
            user = await self.dovecot.ask(key, dialogue.parameters) if key else None
            outcome = "accepted" if user else "refused"
        finally:
            mechanism = dialogue.mechanism if dialogue.mechanism in _MECHANISMS else counting.OTHER
            took_ms = (time.monotonic() - began) * 1000
            maillog.login(outcome, client=client or "unknown", mechanism=mechanism, took_ms=took_ms)
        if user:
            return f"OK\t{dialogue.request}\tuser={user}"
        self.failed.note(client)
        return f"FAIL\t{dialogue.request}\t{_REFUSED}"


def _question(request: str, text: bytes) -> str:
    return f"CONT\t{request}\t{base64.b64encode(text).decode()}"


def key_in(response: str, *, plain: bool) -> str | None:
    """Return the key that a client's response holds, or None for what can never be one.

    PLAIN is `authzid NUL authcid NUL password` (RFC 4616): both names are ignored.
    """
    try:
        content = base64.b64decode(response, validate=True)
    except (binascii.Error, ValueError):
        return None
    parts = content.split(b"\0")
    return key_of(parts[-1]) if len(parts) == (3 if plain else 1) else None
