"""Read data sets and augment their samples."""

from data.catalog.datasets import AnyDataset
from data.classification.labeled_images import LabeledConfig, LabeledImages
from data.prepared import DataConfig
from data.types import DataError, Labels, MissingDataError, SampleDataset

__all__ = [
    "AnyDataset",
    "DataConfig",
    "DataError",
    "LabeledConfig",
    "LabeledImages",
    "Labels",
    "MissingDataError",
    "SampleDataset",
]
