"""Saved predictions: write, read and score them."""
