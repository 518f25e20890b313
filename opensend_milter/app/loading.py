"""Loads modules when they are needed."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """Import a module, and keep the garbage collector from what it makes: that stays to the end of the process.

    To go through it again and again, and once more at the end, is a tenth of what a start costs.
    """
    collects = gc.isenabled() and name not in sys.modules
    if collects:
        gc.disable()
    try:
        return import_module(name)
    finally:
        if collects:
            gc.freeze()
            gc.enable()
