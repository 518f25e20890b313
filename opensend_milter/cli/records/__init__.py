"""What is recorded: one module per noun."""
