"""The console: pages that show what became of messages, to somebody of this host all, to a key what it may read."""
