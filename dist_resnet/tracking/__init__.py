"""What a training says: console, metrics.jsonl, Weights & Biases."""
