"""Whether the database has what the configured profile needs: asked once by a command, watched by a process."""

from __future__ import annotations

from opensend_milter.adapters.admin.verification import connect_as_owner
from opensend_milter.adapters.schema.fitting import Fitting, differences
from opensend_milter.adapters.schema.needs import Need, needs
from opensend_milter.config import Config


def needs_of(config: Config) -> tuple[Need, ...]:
    """Return what the processes need."""
    return needs(profile=config.profile, billing=config.billing)


def watched(config: Config) -> Fitting:
    """Return the watch over the tables that all connections of a process share."""
    return Fitting(needs_of(config))


def misfits(config: Config) -> list[str]:
    """Return what is not as the processes and our commands need it, a line each. Raise StoreUnavailable."""
    with connect_as_owner(config.database, application_name="opensend-check-config") as connection:
        wanted = needs(profile=config.profile, billing=config.billing, administration=True)
        return differences(connection, wanted)
