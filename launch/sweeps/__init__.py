"""Sweeps: their files, their runs, W&B's agents."""
