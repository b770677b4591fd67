"""Compiled loops and exact sums, with which the metrics are computed."""
