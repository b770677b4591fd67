"""SegFlow: video segmentation and optical flow that share features."""
