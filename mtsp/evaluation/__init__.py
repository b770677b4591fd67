"""Evaluation: measure a network on a data set, with test-time augmentation, and show the scores."""
