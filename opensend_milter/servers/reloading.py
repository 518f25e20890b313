"""SIGHUP: the configuration is read again, the log says what changed, and a bad one changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opensend_milter.config import Config, Log, load
from opensend_milter.config.changes import Change, Reads, changes, with_changes
from opensend_milter.core.errors import OpensendError
from opensend_milter.core.logline import formatter
from opensend_milter.servers.supervisor import notify

log = logging.getLogger(__name__)


class Reloading:
    """The configuration that is in force, for as long as a process runs."""

    def __init__(self, path: Path | None, config: Config, reads: Reads) -> None:
        self.config = config
        self._path = path
        # Every process writes a log, and can write it otherwise at any time.
        self._reads = Reads(reads.live | {"log"}, reads.at_start)

    def reload(self, apply: Callable[[Config], None]) -> bool:
        """Read it again and go on with what can be gone on with; on False all is as it was.

        `apply` is called even where nothing changed, because files that the configuration names may have. What it is
        given keeps the old values of keys that need a restart.
        """
        try:
            found = changes(self.config, load(self._path))
            config = with_changes(self.config, (change for change in found if self._reads.is_live(change.key)))
            apply(config)
        except OpensendError as error:
            for line in str(error).splitlines():
                log.error("not reloaded, the old configuration stays: %s", line)  # noqa: TRY400  # no traceback: ours
            return False
        except Exception:
            log.exception("not reloaded, the old configuration stays")
            return False
        self.config = config
        self._say(found)
        return True

    def on_hangup(self, apply: Callable[[Config], None]) -> None:
        """Reload, and let systemd know."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.reload(apply)
        notify("READY=1")

    def _say(self, found: Sequence[Change]) -> None:
        root = logging.getLogger()
        before = root.level
        write_log_as(self.config.log)
        wanted = root.level
        # Who asks for less from now on is still told what changed.
        root.setLevel(min(before, wanted))
        for change in found:
            level = logging.INFO if self._reads.is_live(change.key) else logging.WARNING
            log.log(level, "%s (%s)", change, self._reads.effect(change.key))
        if not found:
            log.info("read again, nothing has changed")
        root.setLevel(wanted)


def write_log_as(settings: Log) -> None:
    """Write what is logged from now on at this level and in this form."""
    root = logging.getLogger()
    root.setLevel(settings.level.upper())
    for handler in root.handlers:
        handler.setFormatter(formatter(settings.format))
