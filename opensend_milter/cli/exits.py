"""How a command ends that cannot do what it was asked: a line on standard error, and sysexits' code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from opensend_milter.config import PATH_VARIABLE, Config, load, load_with_sources, path_in_force
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
    """Turn an error of ours into lines on standard error and its exit code."""
    try:
        yield
    except OpensendError as error:
        fail(str(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))


@contextmanager
def configured(path: Path | None) -> Iterator[Config]:
    """Lend the configuration; the same, and of a database that is the trouble, which one it is."""
    with exits():
        settings = load(path)
        try:
            yield settings
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error}\n{_which_database(path)}") from error


def _which_database(path: Path | None) -> str:
    file, (_, sources) = path_in_force(path), load_with_sources(path)
    match sources["database.url"]:
        case "file":
            said = f"database.url is as {file} says"
        case "default" if file.exists():
            said = f"database.url is the default: {file} does not say"
        case "default":
            said = f"database.url is the default: there is no {file}; name a file with --config or {PATH_VARIABLE}"
        case variable:
            said = f"database.url is as the environment variable {variable} says"
    return f"{said}\n`opensend-milter doctor --only database{f' --config {path}' if path else ''}` says what mends it"


def fail(text: str, code: int) -> NoReturn:
    """Say what is wrong and exit."""
    sys.stderr.write("".join(f"opensend-milter: {line}\n" for line in text.splitlines()))
    sys.exit(code)
