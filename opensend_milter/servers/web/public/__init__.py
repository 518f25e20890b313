"""Pages for people who have no key: what this is, how to call it, why a message was refused."""
