"""The processes we run: front doors and the worker. Translation only."""
