"""MessageStore over psycopg: what may be known of messages by one key, or by whoever may see all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup.search import find, named
from opensend_milter.adapters.postgres.lookup.story import story_of
from opensend_milter.core.lookup import Filters, Hit, Hits, Place, Scope
from opensend_milter.core.story import Say, Story
from opensend_milter.core.submission import email_of_request

REACH = 3_000
"""Nobody else's request is answered while Python reads what is looked at: a thirtieth of a second of it."""


@dataclass(frozen=True, slots=True)
class PostgresMessages:
    """For any number of threads."""

    lend: Callable[[], AbstractContextManager[Connection]]
    beside: bool
    """OpenSend's own worker delivers."""

    def find(self, scope: Scope, asked: str | None, filters: Filters, *, before: Place | None, limit: int) -> Hits:
        """Find the newest that may be read."""
        with self.lend() as connection:
            return find(connection, asked, filters, scope, limit=limit, before=before, reach=REACH)

    def story(self, scope: Scope, asked: str, say: Say) -> Story | None:
        """Tell of the one that this names, where it may be read."""
        with self.lend() as connection:
            for hit in named(connection, asked, scope):
                if _is_named(hit, asked):
                    return story_of(connection, hit, say, beside=self.beside)
        return None


def _is_named(hit: Hit, asked: str) -> bool:
    """Tell whether it is what a request names: by all of an id, since what else is known of it finds others too."""
    return hit.id in {asked, email_of_request(asked)} or (hit.kind == "refusal" and asked in {hit.queue_id, hit.ref})
