"""Every error that is ours.

OpensendError
  ConfigError            wrong configuration: exit 78, the text names the key
  UsageError             a request of the operator that cannot be done: exit 64
  TemporaryError         try again: 451, HTTP 503, back to the queue
    StoreUnavailable
      TablesDiffer       the database answers, and its tables are not those that we know
    AlreadyStored        somebody else stored the same message a moment ago: judge it again
    QueueUnavailable
    DeliveryDeferred
  RowRefused             the database does not take a row of ours: a bug, counted as temporary
  PermanentError         never again: 554, HTTP 422, dead letter
    MalformedMessage
    DeliveryRefused
  DeliveryUncertain      the message may be out: never sent again blindly

A refusal by policy is a value (`model.Refuse`), not an exception: an exception means that something broke.
An exception that is not listed here counts as temporary: we would rather be asked again than lose mail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opensend_milter.core.model import Answers


class OpensendError(Exception):
    """Something of ours went wrong."""

    def __init__(self, detail: str = "") -> None:
        """`detail` is for the log; a sender never sees it."""
        super().__init__(detail or (self.__doc__ or "").strip())


class ConfigError(OpensendError):
    """The configuration is wrong."""


class UsageError(OpensendError):
    """This cannot be done as asked."""


class TemporaryError(OpensendError):
    """Try again later."""


class StoreUnavailable(TemporaryError):  # noqa: N818  # the tree reads as mail says it
    """The database does not answer."""


class TablesDiffer(StoreUnavailable):
    """The tables are not those that this program knows."""


class AlreadyStored(TemporaryError):  # noqa: N818
    """The same message was stored a moment ago."""


class QueueUnavailable(TemporaryError):  # noqa: N818
    """The queue does not answer."""


class DeliveryDeferred(TemporaryError):  # noqa: N818
    """The next hop asks to come back later."""

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        outage: bool = False,
        answers: Answers | None = None,
    ) -> None:
        """`retry_after_s`: what it asked for; `outage`: it would defer any other message as well."""
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.outage = outage
        self.answers = answers


class RowRefused(OpensendError):  # noqa: N818
    """The database does not take this."""


class PermanentError(OpensendError):
    """It will never work like this."""


class MalformedMessage(PermanentError):  # noqa: N818
    """The message cannot be read."""


class DeliveryRefused(PermanentError):  # noqa: N818
    """The next hop refuses the message."""

    def __init__(self, detail: str = "", *, answers: Answers | None = None) -> None:
        """`answers`: what it said of single recipients."""
        super().__init__(detail)
        self.answers = answers


class DeliveryUncertain(OpensendError):  # noqa: N818
    """The connection broke after the message was handed over."""
