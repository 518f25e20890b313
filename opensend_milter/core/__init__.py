"""What we decide: standard library only, no sockets, no SQL."""
