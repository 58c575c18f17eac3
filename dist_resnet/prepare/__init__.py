"""Betons written: from images wherever they come from."""
