"""Metrics as sums: `update` with images, `merge` over processes, `compute` once. Each average says what it is over.

The objects hold plain Python and numpy, so they can be pickled and sent; functions that score one image are public.
"""

from mtsp.metrics.boundary import boundary_measure, region_and_boundary, region_similarity
from mtsp.metrics.classification import ClassificationScores, ImageScores, image_scores
from mtsp.metrics.davis import DavisMeasure, statistics
from mtsp.metrics.flow import FlowErrors, flow_sums
from mtsp.metrics.segmentation import ConfusionMatrix, confusion

__all__ = [
    "ClassificationScores",
    "ConfusionMatrix",
    "DavisMeasure",
    "FlowErrors",
    "ImageScores",
    "boundary_measure",
    "confusion",
    "flow_sums",
    "image_scores",
    "region_and_boundary",
    "region_similarity",
    "statistics",
]
