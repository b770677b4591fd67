"""Render synthetic clips and scenes with exact labels."""
