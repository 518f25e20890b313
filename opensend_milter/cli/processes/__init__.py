"""What runs: the processes, and the configuration that they are started with."""
