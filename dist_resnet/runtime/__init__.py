"""What a worker process is made of: its place among the ranks, signals, a lock."""
