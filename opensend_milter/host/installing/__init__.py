"""Onto a sysadmin's host and off again: a plan of steps, applied and taken back by a journal."""
