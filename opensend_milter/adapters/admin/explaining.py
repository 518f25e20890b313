"""What the database refuses, in the operator's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors

from opensend_milter.adapters.postgres.link import store_errors
from opensend_milter.core.errors import UsageError

_NOT_THERE = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction, errors.InvalidSchemaName)


@contextmanager
def explained() -> Iterator[None]:
    """Raise UsageError where the database refuses what was asked, StoreUnavailable where it is the trouble."""
    with store_errors():
        try:
            yield
        except _NOT_THERE as error:
            raise UsageError(
                f"{error.diag.message_primary}; `db init` or `db migrate` makes the database ready"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise UsageError(f"{error.diag.message_primary}; connect as the owner of the tables") from error
        except (errors.DataError, errors.IntegrityError) as error:
            raise UsageError(f"the database refuses this: {error.diag.message_primary}") from error
