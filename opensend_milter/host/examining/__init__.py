"""Checks of this host, each with what was seen and what mends it."""
