"""Compiled loops and exact sums that the metrics are computed with."""
