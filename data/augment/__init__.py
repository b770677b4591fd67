"""Augment frames, masks and flow together."""
