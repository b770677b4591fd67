"""Segmentation data sets: still images with a class for every pixel."""
