"""What people ask of the database: find a message by anything one knows of it, and tell its story."""
