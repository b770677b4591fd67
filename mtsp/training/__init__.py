"""Training: an experiment, the loop that runs it, and checkpoints, signals and tracking around it."""
