"""Starts workers: on this machine, in this process, or on SLURM. Importing it imports no torch."""
