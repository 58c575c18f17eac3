"""The training loop and what it is built of. Built by worker.py."""
