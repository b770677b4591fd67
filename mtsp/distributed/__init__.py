"""Several processes: sharded weights and synchronized batch normalization."""
