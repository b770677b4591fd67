"""The -SP family: pull weights to where they started, exactly once per optimizer step, in any training loop.

Importing this needs PyTorch and nothing else. The sections of an experiment are in `mtsp.regularizers.configs`.
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
