"""Where workers run: this machine or SLURM; how they are started, watched and settled."""
