"""Metrics as sums: `update` with images, `merge` over processes, `compute` once. Each average says what it is over.

The objects hold plain Python and numpy, so they can be pickled and sent; functions that score one image are public.
"""

from mtsp.metrics.davis import DavisMeasure, boundary_measure, region_and_boundary, region_similarity, statistics
from mtsp.metrics.flow import FlowErrors, flow_sums
from mtsp.metrics.segmentation import ConfusionMatrix, confusion

__all__ = [
    "ConfusionMatrix",
    "DavisMeasure",
    "FlowErrors",
    "boundary_measure",
    "confusion",
    "flow_sums",
    "region_and_boundary",
    "region_similarity",
    "statistics",
]
