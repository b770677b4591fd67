"""Rendered clips and scenes with exact labels."""
