"""How we reach the world: one third-party library per module."""
