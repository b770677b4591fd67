"""Optical flow networks."""

from models.flow.flownets import FlowNet, FlowNetConfig

__all__ = ["FlowNet", "FlowNetConfig"]
