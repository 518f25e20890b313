"""MessageStore over psycopg: what one key may know of messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.postgres.lookup.search import Filters, Hit, Hits, Place, Scope, find
from opensend_milter.adapters.postgres.lookup.story import story_of
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import KeyId
from opensend_milter.core.story import Say, Story
from opensend_milter.core.submission import email_of_request


@dataclass(frozen=True, slots=True)
class PostgresMessages:
    """For any number of threads."""

    lend: Callable[[], AbstractContextManager[Connection]]
    beside: bool
    """OpenSend's own worker delivers."""

    def find(
        self,
        reader: KeyId,
        asked: str | None,
        *,
        since: datetime | None,
        key_id: KeyId | None,
        domain: str | None,
        status: str | None,
        rule: str | None,
        courier: CourierName | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Hits:
        """Find the newest that the key may read."""
        filters = Filters(since=since, key_id=key_id, domain=domain, status=status, rule=rule, courier=courier)
        place = Place(*before) if before else None
        with self.lend() as connection:
            return find(connection, asked, filters, Scope(reads_by=reader), limit=limit, before=place)

    def story(self, reader: KeyId, asked: str, say: Say) -> Story | None:
        """Tell of the one that this names, where the key may read it."""
        with self.lend() as connection:
            for hit in find(connection, asked, scope=Scope(reads_by=reader)).rows:
                if _is_named(hit, asked):
                    return story_of(connection, hit, say, beside=self.beside)
        return None


def _is_named(hit: Hit, asked: str) -> bool:
    """Tell whether it is what a request names: by all of an id, since what else is known of it finds others too."""
    return hit.id in {asked, email_of_request(asked)} or (hit.kind == "refusal" and asked in {hit.queue_id, hit.ref})
