"""Has large blocks of memory go back to the system as soon as they are free."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 1_048_576
_KEPT_BYTES = 524_288
"""Free memory that a heap may keep: with malloc's 128 KB each piece of 64 KB that comes in is asked for anew."""


def give_back_large_blocks() -> None:
    """Keep malloc from what it does after the first of them: it takes the next from a heap that never shrinks."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc's own
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
