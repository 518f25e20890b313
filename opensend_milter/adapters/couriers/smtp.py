"""Courier over SMTP: one connection, used again; the one question that matters is when the final dot was written."""

from __future__ import annotations

import re
import smtplib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from opensend_milter.adapters.couriers.smtp_session import (
    CLOSING,
    Answer,
    Session,
    context_of,
    hops,
    password_of,
    spelled,
)
from opensend_milter.config import Relay
from opensend_milter.core.errors import ConfigError, DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.model import Address, Answers, Parcel, Sent

MESSAGES_PER_CONNECTION = 100
IDLE_S = 30.0
FALL_BACK_S = 60.0
"""So long a fallback is used before the first relay is tried again."""
_PIECE_BYTES = 65_536
_AFTER_LINE_END = re.compile(rb"^\.", re.MULTILINE)
_GO_ON = 354
_ADDRESS_NOT_SPEAKABLE = Answer(553, "5.6.7 the next hop does not offer SMTPUTF8")
_NO_RECIPIENTS = Answer(554, "5.5.1 the message has no recipients")

_Misses = tuple[tuple[Address, str], ...]


class SmtpCourier:
    """For one thread. Nothing is opened before the first message."""

    def __init__(self, relay: Relay, *, hostname: str) -> None:
        """`hostname` is how we greet."""
        self._relay = relay
        self._hostname = hostname
        self._hops = hops(relay)
        self._hop = 0
        self._first_again_at = 0.0
        self._session: Session | None = None
        self._sent = 0
        self._used_at = 0.0
        self._aborted = False
        self._context = context_of(relay)
        if relay.username:
            password_of(relay)

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over."""
        self._aborted = False
        try:
            session = self._connected()
            with _errors(self._host):
                refused, deferred = self._envelope(session, parcel)
                _content(session, parcel.content)
            answer = _final_answer(session)
        except DeliveryRefused:
            raise  # an answer in good order: the next message begins with RSET
        except BaseException:
            self._drop()
            raise
        self._sent += 1
        self._used_at = time.monotonic()
        if answer.code == CLOSING:
            self._drop()
        if answer.is_yes:
            return Sent(courier="smtp", reply=str(answer), refused=refused, deferred=deferred, host=self._host)
        taken = [one for one in parcel.recipients if one not in dict(refused + deferred)]
        if answer.is_never and len(taken) == 1:
            # Some look for a mailbox only now: what is said of the message is said of him alone.
            refused += ((taken[0], str(answer)),)
        raise _no("the message", answer, self._answers(refused))

    @property
    def _host(self) -> str:
        return str(self._hops[self._hop])

    def _answers(self, refused: _Misses) -> Answers:
        return Answers(courier="smtp", host=self._host, refused=refused)

    def rest(self) -> None:
        """Close a connection that is idle."""
        if self._session and time.monotonic() - self._used_at > IDLE_S:
            self.close()

    def abort(self) -> None:
        """Cut the connection under the thread that is sending."""
        self._aborted = True
        if session := self._session:
            session.cut()

    def close(self) -> None:
        """Take leave."""
        if self._session:
            # What was sent is settled by the answer to its dot.
            self._session.quit()
        self._drop()

    def _drop(self) -> None:
        if self._session:
            self._session.close()
        self._session = None

    def _connected(self) -> Session:
        """Return a connection on which a transaction may begin."""
        now = time.monotonic()
        away = self._hop > 0 and now >= self._first_again_at
        if self._session and (away or self._sent >= MESSAGES_PER_CONNECTION or now - self._used_at > IDLE_S):
            self.close()
        if self._session:
            with suppress(OSError, smtplib.SMTPException):
                if self._session.say("RSET").is_yes:
                    return self._session
            self._drop()
        return self._open_any(0 if away else self._hop)

    def _open_any(self, first: int) -> Session:
        """Open the first relay that can be opened: no message was begun, so any of them may have it."""
        places = range(len(self._hops))
        failures: list[DeliveryDeferred] = []
        for place in [*places[first:], *places[:first]]:
            try:
                session = self._open(place)
            except DeliveryDeferred as error:
                failures.append(error)
                continue
            if place and first == 0:
                self._first_again_at = time.monotonic() + FALL_BACK_S
            self._hop = place
            return session
        raise DeliveryDeferred("; ".join(map(str, failures)), outage=True) from failures[-1]

    def _open(self, place: int) -> Session:
        hop = self._hops[place]
        self._session = Session(self._relay, hop, hostname=self._hostname, context=self._context)
        try:
            with _errors(str(hop)):
                if self._aborted:
                    raise DeliveryDeferred("told to stop")
                self._session.open()
        except BaseException:
            self._drop()
            raise
        self._sent = 0
        self._used_at = time.monotonic()
        return self._session

    def _envelope(self, session: Session, parcel: Parcel) -> tuple[_Misses, _Misses]:
        """Name sender and recipients; return those refused and those deferred while others were taken."""
        utf8 = session.offers("smtputf8")
        sender = spelled(parcel.sender, utf8=utf8)
        recipients = {recipient: spelled(recipient, utf8=utf8) for recipient in parcel.recipients}
        if sender is None:
            raise DeliveryRefused(_ADDRESS_NOT_SPEAKABLE.text)
        needs_utf8 = not all((said or "").isascii() for said in (sender, *recipients.values()))
        answer = session.say(f"MAIL FROM:<{sender}>" + _parameters(session, parcel.content, needs_utf8=needs_utf8))
        if not answer.is_yes:
            raise _no("MAIL FROM", answer)
        refused: dict[Address, Answer] = {}
        deferred: dict[Address, Answer] = {}
        for recipient, said in recipients.items():
            answer = session.say(f"RCPT TO:<{said}>") if said else _ADDRESS_NOT_SPEAKABLE
            if answer.code == CLOSING:
                raise _no("RCPT TO", answer)
            if not answer.is_yes:
                (refused if answer.is_never else deferred)[recipient] = answer
        if len(refused) + len(deferred) == len(recipients):
            first = next(iter((*deferred.values(), *refused.values())), _NO_RECIPIENTS)
            raise _no("no recipient taken", first, self._answers(_reasons(refused)))
        return _reasons(refused), _reasons(deferred)


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Map what may happen before the final dot: the next hop does not have the message."""
    try:
        yield
    except (OSError, smtplib.SMTPException, ConfigError) as error:
        raise DeliveryDeferred(f"{where}: {type(error).__name__}: {error}") from error


def _reasons(answers: Mapping[Address, Answer]) -> _Misses:
    return tuple((recipient, str(answer)) for recipient, answer in answers.items())


def _parameters(session: Session, message: bytes, *, needs_utf8: bool) -> str:
    found = []
    if session.offers("size"):
        found.append(f" SIZE={len(message)}")
    if not message.isascii():
        if not session.offers("8bitmime"):
            raise DeliveryDeferred("no 8BITMIME is offered and the message is 8-bit: set relay.eight_bit: false")
        found.append(" BODY=8BITMIME")
    if needs_utf8:
        found.append(" SMTPUTF8")
    return "".join(found)


def _content(session: Session, message: bytes) -> None:
    """Send all but the final dot: without it the next hop can have nothing (RFC 5321, 4.1.1.4)."""
    answer = session.say("DATA")
    if answer.code != _GO_ON:
        raise _no("DATA", answer)
    stuffed = _AFTER_LINE_END.sub(b"..", message)
    if not stuffed.endswith(b"\r\n"):
        stuffed += b"\r\n"
    view = memoryview(stuffed)
    for at in range(0, len(view), _PIECE_BYTES):
        # In pieces, because the socket's timeout is for the whole of one sendall.
        session.write(view[at : at + _PIECE_BYTES])


def _final_answer(session: Session) -> Answer:
    try:
        session.write(b".\r\n")
        answer = session.answer()
    except Exception as error:
        raise DeliveryUncertain(f"after the final dot: {type(error).__name__}: {error}") from error
    if not (answer.is_yes or answer.is_no):
        raise DeliveryUncertain(f"after the final dot: {answer}")
    return answer


def _no(what: str, answer: Answer, answers: Answers | None = None) -> DeliveryDeferred | DeliveryRefused:
    text = f"{what}: {answer}"
    if answer.is_never:
        return DeliveryRefused(text, answers=answers)
    return DeliveryDeferred(text, outage=answer.is_for_all, answers=answers)
