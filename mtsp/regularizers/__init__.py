"""The -SP family: regularizers that pull weights to their start, once per optimizer step, in any training loop.

This package needs only PyTorch. The config sections that select a regularizer are in `mtsp.regularizers.configs`.
"""

from mtsp.regularizers.base import Regularizer, Report
from mtsp.regularizers.members import GLSP, L1SP, L2SP, MARS, SPD, CautiousL2SP, DirectionSP, GLSPFisher, L2SPFisher
from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.strength import Pace, Strength, by_depth, half_life, time_constant
from mtsp.regularizers.targets import Target

__all__ = [
    "GLSP",
    "L1SP",
    "L2SP",
    "MARS",
    "SPD",
    "CautiousL2SP",
    "DirectionSP",
    "GLSPFisher",
    "L2SPFisher",
    "Mode",
    "Pace",
    "Regularizer",
    "Report",
    "Strength",
    "Target",
    "by_depth",
    "half_life",
    "time_constant",
]
