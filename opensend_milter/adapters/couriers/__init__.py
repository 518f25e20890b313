"""The ways a message leaves, each a Courier."""
