"""How a command ends that cannot do what it was asked: a line on standard error, and sysexits' code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from opensend_milter.core.errors import ConfigError, OpensendError, StoreUnavailable, TemporaryError, UsageError

EX_USAGE, EX_UNAVAILABLE, EX_SOFTWARE, EX_TEMPFAIL, EX_CONFIG = 64, 69, 70, 75, 78
_EXIT_CODES = (
    (ConfigError, EX_CONFIG),
    (UsageError, EX_USAGE),
    (StoreUnavailable, EX_UNAVAILABLE),
    (TemporaryError, EX_TEMPFAIL),
    (OpensendError, EX_SOFTWARE),
)


@contextmanager
def exits() -> Iterator[None]:
    """Turn an error of ours into one line on standard error and its exit code."""
    try:
        yield
    except OpensendError as error:
        fail(str(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))


def fail(text: str, code: int) -> NoReturn:
    """Say what is wrong and exit."""
    sys.stderr.write("".join(f"opensend-milter: {line}\n" for line in text.splitlines()))
    sys.exit(code)
