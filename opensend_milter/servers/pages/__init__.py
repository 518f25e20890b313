"""The dress of every page: what pages of `http` and of the console are made with, and the files they ask for."""
