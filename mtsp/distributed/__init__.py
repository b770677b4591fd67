"""Train on several processes: sharded weights and synchronized batch normalization."""
