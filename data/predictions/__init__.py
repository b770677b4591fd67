"""Stored predictions: read and score them."""
