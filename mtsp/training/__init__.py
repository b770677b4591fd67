"""Train: describe an experiment, run its training loop, and save and resume checkpoints."""
