"""Transfer: how near the classes of one domain are to those of another, and which of them to pre-train on.

After Cui, Song, Sun, Howard and Belongie, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer
Learning", CVPR 2018: a domain is the mean features of its classes, each as heavy as its number of images, and two
domains are as far apart as it costs to move the one onto the other.
"""

from mtsp.transfer.centroids import Centroids, joined
from mtsp.transfer.distances import GAMMA, Transport, distances, emd, similarity, single_class, transport
from mtsp.transfer.features import extract
from mtsp.transfer.figure import draw_plan
from mtsp.transfer.selection import Growth, greedy, growth, nearest, neighbors, ranking, united

__all__ = [
    "GAMMA",
    "Centroids",
    "Growth",
    "Transport",
    "distances",
    "draw_plan",
    "emd",
    "extract",
    "greedy",
    "growth",
    "joined",
    "nearest",
    "neighbors",
    "ranking",
    "similarity",
    "single_class",
    "transport",
    "united",
]
