"""Betons read: which sample when, cropped and flipped how, on which device."""
