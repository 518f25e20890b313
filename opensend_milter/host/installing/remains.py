"""What an undo would destroy that nobody could bring back: messages, and programs that run."""

from __future__ import annotations

from pathlib import Path

from opensend_milter.core.errors import UsageError
from opensend_milter.host.installing import journal
from opensend_milter.host.installing.blueprint import POSTFIX, QUEUE_DIR
from opensend_milter.host.installing.plan import Root

_QUEUES = ("maildrop", "incoming", "active", "deferred", "hold")
_MAILDIR = journal.STATE_DIR / "maildir"


def refuse_what_would_be_lost(root: Root) -> None:
    """Raise UsageError where messages lie in what an undo removes, or our Postfix runs and systemd did not start it."""
    if not journal.read(root.at(journal.STATE_DIR)):
        return
    queue = root.at(QUEUE_DIR)
    held = sum(_files(queue / name) for name in _QUEUES)
    if held:
        raise UsageError(
            f"{held} messages lie in {queue}: look at them with `postqueue -c {POSTFIX} -p`, or use --force"
        )
    delivered = _files(root.at(_MAILDIR) / "new") + _files(root.at(_MAILDIR) / "cur")
    if delivered:
        raise UsageError(f"{delivered} messages lie in {root.at(_MAILDIR)}: move them elsewhere, or use --force")
    if root.is_here and not Path("/run/systemd/system").is_dir() and _runs(queue / "pid" / "master.pid"):
        raise UsageError(f"our Postfix runs: `postfix -c {POSTFIX} stop` first, and stop what else was started by hand")


def _files(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _runs(pid_file: Path) -> bool:
    try:
        return Path(f"/proc/{int(pid_file.read_text())}").exists()
    except (OSError, ValueError):
        return False
