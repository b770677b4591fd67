"""What an experiment's `regularizer` section can be."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from mtsp.config import Config
from mtsp.regularizers.anchored import Anchored
from mtsp.regularizers.family import GLSP, L1SP, L2SP, DirectionSP
from mtsp.regularizers.gated import SPD, CautiousL2SP
from mtsp.regularizers.penalties import Placement
from mtsp.regularizers.strength import Strength


class AnchoredConfig(Config):
    """What every regularizer can be told."""

    kind: ClassVar[type[Anchored]] = L2SP
    to_zero: ClassVar[bool] = False

    alpha: float = Field(ge=0)
    """Pull on pretrained weights, in loss per squared distance (l1sp, glsp: per distance). A branch may set its own."""
    beta: float = Field(ge=0)
    """Pull on new weights, in loss per squared weight. A branch may set its own."""
    placement: Placement = "auto"

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Strength, beta: Strength) -> Anchored:
        """Return the regularizer with these strengths, by branch."""
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, placement=self.placement, zero=self.to_zero)


class L2Config(AnchoredConfig):
    """Weight decay as the papers' baseline has it: every convolution and linear weight is pulled to zero."""

    to_zero = True
    name: Literal["l2"]


class L2SPConfig(AnchoredConfig):
    """L2-SP, equation 3 of the paper: pretrained weights are pulled to their start, new ones to zero."""

    name: Literal["l2sp"]


class L1SPConfig(AnchoredConfig):
    """L1-SP: the sum of absolute distances; proximal, so that some weights stay exactly where they started."""

    kind = L1SP
    name: Literal["l1sp"]


class GLSPConfig(AnchoredConfig):
    """GL-SP: the group lasso over output channels; proximal, so that some stay exactly where they started."""

    kind = GLSP
    name: Literal["glsp"]


class DirectionSPConfig(AnchoredConfig):
    """Filter-direction L2-SP, for convolutions that a normalization layer follows."""

    kind = DirectionSP
    name: Literal["directionsp"]


class SPDConfig(AnchoredConfig):
    """Selective projection decay; alpha is a share, and does not depend on the learning rate."""

    kind = SPD
    name: Literal["spd"]


class CautiousL2SPConfig(AnchoredConfig):
    """Decoupled L2-SP where it agrees with the optimizer's update."""

    kind = CautiousL2SP
    name: Literal["cautiousl2sp"]


class NoneConfig(Config):
    """No regularization: the control of every experiment."""

    name: Literal["none"]


PullConfig = (
    L2Config | L2SPConfig | L1SPConfig | GLSPConfig | DirectionSPConfig | SPDConfig | CautiousL2SPConfig | NoneConfig
)
