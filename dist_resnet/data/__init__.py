"""Betons: written, verified and read."""
