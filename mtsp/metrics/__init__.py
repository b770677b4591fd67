"""Metrics that accumulate sums: call `update` for each batch, `merge` across processes, and `compute` at the end.

Metric objects hold plain Python and numpy values, so they can be pickled and sent to other processes. The functions
that score a single image are public, too.
"""

from mtsp.metrics.classification import ClassificationScores, ImageScores, image_scores
from mtsp.metrics.davis import DavisMeasure, statistics
from mtsp.metrics.flow import FlowErrors, flow_sums
from mtsp.metrics.region_boundary import boundary_measure, region_and_boundary, region_similarity
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
