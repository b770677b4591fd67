"""SegFlow: video segmentation and optical flow that share features."""

from models.segflow.network import SegFlow, SegFlowConfig

__all__ = ["SegFlow", "SegFlowConfig"]
