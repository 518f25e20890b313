"""The SMTP front door: what Postfix tells us about a message, as a Message; an Outcome, as a reply.

Callbacks only collect. libmilter moves a session between its own threads, and C code that asks for the GIL there
(psycopg with a server notice, ctypes, ssl) crashes the process: such work belongs to threads that we start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import mmap
import os
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

import milter

from opensend_milter.core import maillog
from opensend_milter.core.address import MAX_ADDRESS_OCTETS, envelope_addresses
from opensend_milter.core.errors import ConfigError, OpensendError
from opensend_milter.core.ids import key_id, new_email_id
from opensend_milter.core.model import Address, Envelope, KeyId, Message, Outcome, Refuse, Session, refuse
from opensend_milter.core.policy import NOT_A_KEY, OURS, UNAUTHENTICATED
from opensend_milter.core.refs import PATH
from opensend_milter.core.rules import COME_AGAIN, Rule
from opensend_milter.core.transfer import Buffer
from opensend_milter.servers.supervisor import Line
from opensend_milter.servers.unix_socket import usable_by

log = logging.getLogger(__name__)

REPLY_LINE = 400
"""Characters; a reply line holds 512 octets with code and line end (RFC 5321, 4.5.3.1.5)."""
REPLY_LINES = 8
_LAST_REPLIES_S = 0.3
_LONGEST_RECIPIENT = 4 * MAX_ADDRESS_OCTETS + 3
"""Octets that are kept of what RCPT says: what is longer, even in brackets, has more characters than an address may."""
LATE = refuse(Rule.OURS, "this server is stopping; connect again", COME_AGAIN)

CONTINUE: int = milter.CONTINUE
NOREPLY: int = milter.NOREPLY
DISCARD: int = milter.DISCARD
REJECT: int = milter.REJECT
TEMPFAIL: int = milter.TEMPFAIL

WANTED = (
    milter.P_HDR_LEADSPC  # without it white space after the colon is lost, and with it simple DKIM signatures
    | milter.P_NR_MAIL
    | milter.P_NR_RCPT
    | milter.P_NR_HDR
    | milter.P_NR_BODY
    | milter.P_NOCONNECT
    | milter.P_NOHELO
    | milter.P_NODATA
    | milter.P_NOEOH
    | milter.P_NOUNKNOWN
)

MACROS = "i {auth_authen} {client_addr} {tls_version} {cipher}"
"""What we ask for at MAIL. Sendmail has no {client_addr} among those by itself, and says `i` then or never."""


class Context(Protocol):
    """libmilter's view of one SMTP connection."""

    def getpriv(self) -> Connection | None: ...
    def setpriv(self, connection: Connection | None) -> None: ...
    def getsymval(self, macro: str) -> str | None: ...
    def setsymlist(self, stage: int, macros: str) -> None: ...
    def setreply(self, code: str, enhanced: str, *lines: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What every connection of this process shares."""

    accept: Callable[[Message], Outcome]
    spool_dir: Path
    spool_above_bytes: int
    max_message_bytes: int
    base: str = ""
    """What the address of a refusal begins with; empty: nobody shows any."""


@dataclass(slots=True)
class Transaction:
    """One message being collected, from MAIL to its end."""

    door: Door
    sender: str
    key: str
    client_address: str
    tls: str
    recipients: list[bytes] = field(default_factory=list)
    """As RCPT said them; read all together, and only where the message comes to its end."""
    queue_id: str = ""
    header: bytearray = field(default_factory=bytearray)
    body: list[bytes] = field(default_factory=list)
    body_size: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Of the bytes as they come: a large message is not read again for it."""
    spool: IO[bytes] | None = None
    broken: bool = False
    late: bool = False
    """Begun when the process was told to end: not taken, and not waited for."""

    @property
    def size(self) -> int:
        return len(self.header) + 2 + self.body_size

    def add_header(self, name: bytes, value: bytes) -> None:
        # Beyond the limit nothing is kept: the size alone refuses it.
        if self.size <= self.door.max_message_bytes:
            # libmilter says where a line is folded with a bare LF, mostly.
            self.header += b"%b:%b\r\n" % (name, value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        else:
            self.body_size += len(name) + len(value)

    def end_header(self) -> None:
        self.sha256.update(self.header + b"\r\n")

    def add_body(self, chunk: bytes) -> None:
        if chunk and not self.body_size:
            self.end_header()
        self.sha256.update(chunk)
        self.body_size += len(chunk)
        if self.size > self.door.max_message_bytes:
            self.discard()
            return
        if self.spool is None and self.size > self.door.spool_above_bytes:
            self.spool = tempfile.TemporaryFile(dir=self.door.spool_dir, prefix="message-")  # noqa: SIM115
            self.spool.writelines([bytes(self.header), b"\r\n", *self.body])
            self.body = []
        if self.spool is None:
            self.body.append(chunk)
        else:
            self.spool.write(chunk)

    def raw(self) -> Buffer:
        """Return the bytes as sent; large ones stay on disk."""
        if self.spool is None:
            return b"".join([bytes(self.header), b"\r\n", *self.body])
        self.spool.flush()
        return mmap.mmap(self.spool.fileno(), 0, access=mmap.ACCESS_READ)

    def discard(self) -> None:
        """Let go of what was collected."""
        self.body = []
        if self.spool is not None:
            # It would write what it still holds.
            with contextlib.suppress(OSError):
                self.spool.close()
            self.spool = None

    def give_up(self, error: OSError) -> None:
        """Put the message off that the spool does not hold; nothing is kept of it."""
        self.broken = True
        self.discard()
        maillog.not_spooled(self.queue_id, self.size, error.strerror or str(error))


class Connection:
    """One SMTP connection: it carries many messages, one Transaction each."""

    def __init__(self, *, replies: bool) -> None:
        self.transaction: Transaction | None = None
        self.collected = CONTINUE if replies else NOREPLY
        """What a collecting callback returns."""


class Callbacks:
    """What libmilter calls; one for the process. `door` may be replaced at any time: a message keeps the one it has."""

    def __init__(self) -> None:
        self.door: Door | None = None
        self.connected: Callable[[], None] = lambda: None
        """Called for each connection that begins."""
        self.draining = False
        self._lock = threading.Lock()
        self._in_hand = 0

    @property
    def in_hand(self) -> int:
        """Messages between MAIL and their reply, but for those that came too late."""
        return self._in_hand

    def register(self, name: str) -> None:
        """Tell libmilter what to call."""
        milter.set_flags(0)
        milter.set_envfrom_callback(_guarded(self.mail))
        milter.set_envrcpt_callback(_guarded(self.rcpt))
        milter.set_header_callback(_guarded(self.header))
        milter.set_body_callback(_guarded(self.body))
        milter.set_eom_callback(_guarded(self.end_of_message))
        milter.set_abort_callback(_guarded(self.abort))
        milter.set_close_callback(_guarded(self.close))
        milter.register(name, negotiate=self.negotiate)

    def negotiate(self, context: Context, options: list[int]) -> int:
        offered = options[1]
        nr = milter.P_NR_MAIL | milter.P_NR_RCPT | milter.P_NR_HDR | milter.P_NR_BODY
        wanted = WANTED if offered & nr == nr else WANTED & ~nr
        if asks := options[0] & milter.SETSYMLIST:
            context.setsymlist(milter.M_ENVFROM, MACROS)
        options[0], options[1], options[2], options[3] = asks, offered & wanted, 0, 0
        context.setpriv(Connection(replies=offered & nr != nr))
        self.connected()
        return CONTINUE

    def _connection(self, context: Context) -> Connection:
        connection = context.getpriv()
        if connection is None:  # a peer too old to negotiate
            connection = Connection(replies=True)
            context.setpriv(connection)
        return connection

    def _begin(self, connection: Connection, transaction: Transaction) -> None:
        self._end(connection)
        connection.transaction = transaction
        with self._lock:
            # Asked under the lock: whoever waits for an empty hand has set it before.
            transaction.late = self.draining
            self._in_hand += not transaction.late

    def _end(self, connection: Connection) -> None:
        if connection.transaction is not None:
            connection.transaction.discard()
            with self._lock:
                self._in_hand -= not connection.transaction.late
            connection.transaction = None

    def drain(self) -> None:
        """Take nothing more that begins: a client on an open connection would keep us for ever."""
        with self._lock:
            self.draining = True

    def mail(self, context: Context, sender: bytes, *_: bytes) -> int:
        if self.door is None:
            raise RuntimeError("MAIL before the door was opened")
        connection = self._connection(context)
        transaction = Transaction(
            door=self.door,
            sender=_text(sender).removeprefix("<").removesuffix(">"),
            key=context.getsymval("{auth_authen}") or "",
            client_address=context.getsymval("{client_addr}") or "",
            tls=" ".join(filter(None, (context.getsymval("{tls_version}"), context.getsymval("{cipher}")))),
        )
        self._begin(connection, transaction)
        return connection.collected

    def rcpt(self, context: Context, recipient: bytes, *_: bytes) -> int:
        connection = self._connection(context)
        if transaction := connection.transaction:
            transaction.recipients.append(recipient[:_LONGEST_RECIPIENT])
        return connection.collected

    def header(self, context: Context, name: bytes | str, value: bytes) -> int:
        connection = self._connection(context)
        if transaction := connection.transaction:
            transaction.add_header(name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape"), value)
        return connection.collected

    def body(self, context: Context, chunk: bytes) -> int:
        connection = self._connection(context)
        if (transaction := connection.transaction) and not transaction.broken:
            try:
                transaction.add_body(chunk)
            except OSError as error:
                transaction.queue_id = context.getsymval("i") or ""
                transaction.give_up(error)
        return connection.collected

    def end_of_message(self, context: Context) -> int:
        connection = self._connection(context)
        transaction = connection.transaction
        if transaction is None:
            return _reply(context, OURS)
        try:
            transaction.queue_id = context.getsymval("i") or ""
            outcome = _decide(transaction)
            return _reply(context, outcome, transaction.door.base) if isinstance(outcome, Refuse) else DISCARD
        finally:
            self._end(connection)

    def abort(self, context: Context) -> int:
        self._end(self._connection(context))
        return CONTINUE

    def close(self, context: Context) -> int:
        connection = context.getpriv()
        if connection is not None:
            self._end(connection)
            context.setpriv(None)
        return CONTINUE


def _decide(transaction: Transaction) -> Outcome:
    if transaction.late:
        return LATE
    if transaction.broken:
        return OURS
    recipients, bad = envelope_addresses(transaction.recipients)
    fault = _fault(transaction, recipients, bad)
    if not transaction.body_size:
        transaction.end_header()
    try:
        raw = b"" if fault or transaction.size > transaction.door.max_message_bytes else transaction.raw()
    except OSError as error:
        transaction.give_up(error)
        return OURS
    return transaction.door.accept(_message(transaction, recipients, raw, fault))


def _fault(transaction: Transaction, recipients: tuple[Address, ...], bad: str | None) -> Refuse | None:
    """Tell what is wrong before anybody looks at the content."""
    if not transaction.key:
        return UNAUTHENTICATED
    if key_id(transaction.key) is None:
        return NOT_A_KEY
    if bad is not None or not recipients:
        text = f"recipient {bad or ''!a} is not an address; write it as user@domain"
        return refuse(Rule.RECIPIENT_MALFORMED, text)
    return None


def _message(transaction: Transaction, recipients: tuple[Address, ...], raw: Buffer, fault: Refuse | None) -> Message:
    return Message(
        id=new_email_id(),
        session=Session(
            key_id=key_id(transaction.key) or KeyId(transaction.key),
            front_door="smtp",
            client_address=transaction.client_address,
            tls=transaction.tls,
        ),
        envelope=Envelope(sender=transaction.sender, recipients=recipients),
        queue_id=transaction.queue_id,
        received_at=datetime.now(UTC),
        raw=raw,
        size=transaction.size,
        sha256=transaction.sha256.digest(),
        fault=fault,
    )


def _text(argument: bytes) -> str:
    return argument.decode("utf-8", "replace")


def _guarded(callback: Callable[..., int]) -> Callable[..., int]:
    """Keep every exception from libmilter: a callback that fails makes Postfix drop us for the whole connection."""

    @functools.wraps(callback)
    def guarded(context: Context, *arguments: object) -> int:
        try:
            return callback(context, *arguments)
        except Exception:
            log.exception("%s failed", callback.__name__)
            return _failed(context, at_end=callback.__name__ == "end_of_message")

    return guarded


def _failed(context: Context, *, at_end: bool) -> int:
    if at_end:
        return _reply(context, OURS)
    connection = context.getpriv()
    if connection is None:
        return CONTINUE
    if connection.transaction is not None:
        connection.transaction.broken = True
    return connection.collected


def _reply(context: Context, refusal: Refuse, base: str = "") -> int:
    lines = reply_lines(refusal.text, _where_it_is_told(refusal, base))
    context.setreply(str(refusal.code), refusal.enhanced, *lines)
    return TEMPFAIL if refusal.code < 500 else REJECT  # noqa: PLR2004  # SMTP's own border


def _where_it_is_told(refusal: Refuse, base: str) -> str:
    """Say by what a refusal is looked up: an address, where there is one that fits in a line."""
    if not refusal.token:
        return ""
    address = f"; see {base}{PATH}{refusal.token}"
    return address if base and len(address) <= REPLY_LINE else f" (ref {refusal.ref})"


def reply_lines(text: str, last: str = "") -> list[str]:
    """Shape a text for libmilter: ASCII, no line ends, a doubled %, lines that SMTP allows.

    `last` ends it: of what is too long, the text is cut.
    """
    plain = "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))
    lines = textwrap.wrap(plain, REPLY_LINE, break_on_hyphens=False)[:REPLY_LINES] or ["refused"]
    room = REPLY_LINE - len(last)
    if len(lines[-1]) > room and len(lines) < REPLY_LINES:
        lines.append(last.lstrip("; "))
    else:
        lines[-1] = lines[-1][:room] + last
    return [line.replace("%", "%%") for line in lines]


def open_socket(path: Path, group: int | None) -> int:
    """Listen on a unix socket that the group may use; return its descriptor, shared with children to come."""
    if not path.parent.is_dir():  # libmilter would not say why
        raise ConfigError(f"milter.socket: {path}: No such file or directory")
    milter.setconn(f"unix:{path}")
    with usable_by(path, group):
        milter.opensocket(True)  # noqa: FBT003  # pymilter's own signature: remove a stale socket
    return _descriptor_of(path)


def _descriptor_of(path: Path) -> int:
    """Find the socket that libmilter opened and keeps to itself."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as duplicate:
                if duplicate.getsockname() == str(path):
                    return int(entry.name)
    raise OSError(f"libmilter does not listen on {path}")


def stop_listening(descriptor: int) -> None:
    """Leave new connections to other processes.

    libmilter cannot be told: stopping it would also remove the socket. So its descriptor becomes one that nobody calls.
    """
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind("")
        nobody.listen(1)
        os.dup2(nobody.fileno(), descriptor)


class MilterProcess:
    """One child: libmilter answers Postfix, a thread of ours follows the supervisor's orders."""

    def __init__(
        self,
        callbacks: Callbacks,
        descriptor: int,
        *,
        door: Door,
        reopen: Callable[[bytes], Door],
        close: Callable[[], None],
        drain_s: float,
    ) -> None:
        """`reopen` returns the door that an order asks for, `close` finishes what was handed in."""
        self._callbacks = callbacks
        self._descriptor = descriptor
        self._reopen = reopen
        self._close = close
        self._drain_s = drain_s
        callbacks.door = door

    def run(self, line: Line) -> None:
        """Answer until told to drain."""
        threading.Thread(target=self._follow, args=(line,), name="opensend-orders", daemon=True).start()
        line.ready()
        milter.main()

    def _follow(self, line: Line) -> None:
        while order := line.next_order():
            self._reload(order)
        self._drain()

    def _reload(self, order: bytes) -> None:
        try:
            self._callbacks.door = self._reopen(order)
        except OpensendError as error:
            log.error("not reloaded, the old configuration stays: %s", error)  # noqa: TRY400  # no traceback: ours
            return
        log.info("reloaded")

    def _drain(self) -> None:
        stop_listening(self._descriptor)
        self._callbacks.drain()
        deadline = time.monotonic() + self._drain_s
        while self._callbacks.in_hand and time.monotonic() < deadline:
            time.sleep(0.02)
        # It may still commit what was handed in, and that is to be answered too.
        self._close()
        # libmilter writes the last replies after our callbacks have returned.
        time.sleep(_LAST_REPLIES_S)
        os._exit(0)
