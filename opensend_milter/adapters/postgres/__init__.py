"""What the processes ask of the database: one module and one file of statements for each concern."""
