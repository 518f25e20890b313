"""What the tables are: OpenSend's as facts, ours as migrations, and whether a database has them."""
