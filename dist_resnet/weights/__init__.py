"""Trained networks as files: checkpoints, exports, and what must be known to use them."""
