"""Checks before the first step: files, classes, samples, frame sizes, settings, unused weights, and memory."""
