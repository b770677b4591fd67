"""Compiled loops and exact sums that the metrics use."""
