"""Checkpoints of a run: write, read, keep and delete them, and continue a run from one."""
