"""Augmentation of frames, masks and flow together."""
