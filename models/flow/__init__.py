"""Optical flow networks."""
