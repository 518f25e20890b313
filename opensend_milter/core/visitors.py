"""Who looks at the console: somebody of this host, who sees all, or the holder of a key, who sees what it may read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from opensend_milter.core.model import KeyId

SESSION_LASTS = timedelta(hours=8)
"""Then whoever it is logs in again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Whoever asks for a page."""

    name: str
    """The user's, or the key's."""
    key_id: KeyId | None = None
    """None: somebody of this host."""
    networks: tuple[str, ...] | None = None
    """From where the key may be used; None: from anywhere."""

    @property
    def sees_everything(self) -> bool:
        """Tell whether it is somebody of this host."""
        return self.key_id is None
