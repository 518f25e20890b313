"""Has large blocks of memory go back to the system as soon as they are free."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1_048_576


def give_back_large_blocks() -> None:
    """Keep malloc from what it does after the first of them: it takes the next from a heap that never shrinks."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc's own
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
