"""What a person asks of the database: keys, domains, lists, looks."""
