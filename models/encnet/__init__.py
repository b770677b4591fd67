"""EncNet: semantic segmentation with context encoding."""

from models.encnet.network import EncNet, EncNetConfig

__all__ = ["EncNet", "EncNetConfig"]
