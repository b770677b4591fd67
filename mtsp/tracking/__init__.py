"""Tracking: metrics.jsonl always, Weights & Biases and TensorBoard on request."""
