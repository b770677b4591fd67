"""Figures: masks, optical flow and predictions drawn for people."""
