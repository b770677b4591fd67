"""The -SP family: pull weights to where they started, exactly once per optimizer step, in any training loop.

Importing this needs PyTorch and nothing else. The sections of an experiment are in `mtsp.regularizers.configs`.
"""

from mtsp.regularizers.base import Anchored, Report
from mtsp.regularizers.members import GLSP, L1SP, L2SP, DirectionSP, GLSPFisher, L2SPFisher
from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.selective import MARS, SPD, CautiousL2SP
from mtsp.regularizers.strength import Pace, Strength, by_depth, half_life, time_constant
from mtsp.regularizers.targets import Pull

__all__ = [
    "GLSP",
    "L1SP",
    "L2SP",
    "MARS",
    "SPD",
    "Anchored",
    "CautiousL2SP",
    "DirectionSP",
    "GLSPFisher",
    "L2SPFisher",
    "Mode",
    "Pace",
    "Pull",
    "Report",
    "Strength",
    "by_depth",
    "half_life",
    "time_constant",
]
