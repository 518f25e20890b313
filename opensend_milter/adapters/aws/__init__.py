"""Amazon's queues and notices."""
