"""EncNet: semantic segmentation with context encoding."""
