"""Track runs: always in `metrics.jsonl`, on request also in Weights & Biases and TensorBoard."""
