"""The `regularizer` section of an experiment: one class for each regularizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_serializer, model_validator
from torch import Tensor, nn

from mtsp.config import Config
from mtsp.fisher.estimate import fisher_of
from mtsp.optim import OptimizerConfig
from mtsp.regularizers.base import Regularizer
from mtsp.regularizers.members import GLSP, L1SP, L2SP, MARS, SPD, CautiousL2SP, DirectionSP, GLSPFisher, L2SPFisher
from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.rates import resolve_mode, strength_of
from mtsp.regularizers.strength import Pace, half_life


class PaceConfig(Config):
    """A strength given as a speed: `{time_constant: 2000}`, `{half_life: 1000}` or `{remaining: 0.05}`.

    It is converted to a number with each branch's own learning rate, and with the momentum where that counts. To first
    order, as :class:`Pace`: what really remains differs a little, more in a short run. `remaining` is a ratio of
    distances, after and before a run of the pull alone. A ratio of the pull to the data's gradient cannot be set: it is
    zero at the start and changes with every step; a run reports it.
    """

    time_constant: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Steps in which the pull alone, at the full learning rate, brings a weight to 1/e of its distance."""
    half_life: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Steps in which it halves the distance."""
    remaining: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the distance that the pull alone leaves at the end of the run, given the schedule and the stages in
    which the branch learns. The strength depends on train.steps."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "PaceConfig":
        if len(self._given()) != 1:
            given = " and ".join(self._given()) or "none"
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}, or a number; got {given}")
        return self

    @model_serializer
    def _given(self) -> dict[str, float]:
        values = {"time_constant": self.time_constant, "half_life": self.half_life, "remaining": self.remaining}
        return {key: value for key, value in values.items() if value is not None}

    def pace(self, steps: float) -> Pace:
        """Return the pace. `steps` is the length of the branch's training, in steps at the full learning rate."""
        if self.remaining is not None:
            return Pace(steps, self.remaining)
        if self.half_life is not None:
            return half_life(self.half_life)
        assert self.time_constant is not None
        return Pace(self.time_constant)


def _kind_of_strength(value: Any) -> str:
    return "PaceConfig" if isinstance(value, dict | PaceConfig) else "number"


StrengthConfig = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False), Tag("number")] | Annotated[PaceConfig, Tag("PaceConfig")],
    Discriminator(_kind_of_strength),
]
"""A number or a pace."""

Numbers = Mapping[str, float]
"""Strengths by branch."""


class RegularizerConfig(Config):
    """Base of all regularizer sections."""

    kind: ClassVar[type[Regularizer]] = L2SP

    def strength(
        self, key: str, pace: Pace, lr: float, optimizer: OptimizerConfig, *, may_overshoot: bool = False
    ) -> float:
        """Return the strength that attaching the regularizer would give this pace.

        Args:
            key: `alpha` or `beta`.
            pace: how fast the pull alone should be.
            lr: full learning rate.
            optimizer: the experiment's.
            may_overshoot: accept a pace so fast that the weights swing past their anchors.

        Raises:
            ValueError: this strength has no pace with this optimizer, or none this fast.
        """
        self.kind.check_pace(key)
        built = optimizer.build([{"params": [torch.zeros(1)], "lr": lr}])
        mode = resolve_mode(self.kind.shared_penalty, getattr(self, "mode", "auto"), built)
        return strength_of(pace, built, built.param_groups[0], mode, may_overshoot=may_overshoot)


class PenaltyConfig(RegularizerConfig):
    """Settings of every regularizer but mars."""

    to_zero: ClassVar[bool] = False

    alpha: StrengthConfig
    """Pull on pretrained weights, in loss per squared distance (l1sp, glsp: per distance), or a pace. A branch may set
    its own."""
    beta: StrengthConfig
    """Pull on new weights, in loss per squared weight, or a pace. A branch may set its own."""
    mode: Mode = "auto"
    """How the pull enters a step: coupled (in the gradient), decoupled (as in AdamW), proximal (after the step), or
    auto, which fits the penalty and the optimizer."""

    @model_validator(mode="after")
    def _mode_is_possible(self) -> "PenaltyConfig":
        self.kind.check_mode(self.mode)
        return self

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer with these strengths by branch."""
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, mode=self.mode, zero=self.to_zero)


class L2Config(PenaltyConfig):
    """L2, the papers' baseline: every convolution and linear weight is pulled to zero."""

    to_zero = True
    name: Literal["l2"]


class L2SPConfig(PenaltyConfig):
    """L2-SP, equation 3 of the paper: pretrained weights are pulled to their start, new ones to zero."""

    name: Literal["l2sp"]


class L1SPConfig(PenaltyConfig):
    """L1-SP: the sum of absolute distances; proximal, so that some weights stay exactly where they started."""

    kind = L1SP
    name: Literal["l1sp"]


class GLSPConfig(PenaltyConfig):
    """GL-SP: the group lasso over output channels; proximal, so that some stay exactly where they started."""

    kind = GLSP
    name: Literal["glsp"]


class DirectionSPConfig(PenaltyConfig):
    """Filter-direction L2-SP, for convolutions that a normalization layer follows."""

    kind = DirectionSP
    name: Literal["directionsp"]


class SPDConfig(PenaltyConfig):
    """Selective projection decay; alpha is a fraction and does not depend on the learning rate."""

    kind = SPD
    name: Literal["spd"]


class CautiousL2SPConfig(PenaltyConfig):
    """Decoupled L2-SP on the entries where it agrees with the optimizer's update."""

    kind = CautiousL2SP
    name: Literal["cautiousl2sp"]


class FisherConfig(PenaltyConfig):
    """Settings of the regularizers that use Fisher information."""

    fisher: str
    """File that `python tools/fisher.py --config THIS --out FILE` writes. It is divided by its mean over the pretrained
    weights, so that alpha compares with that of l2sp (glsp)."""

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer with these strengths by branch.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it was estimated at other weights than the anchors.
        """
        fisher = fisher_of(Path(self.fisher), anchors)
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, mode=self.mode, fisher=fisher)


class L2SPFisherConfig(FisherConfig):
    """L2-SP-Fisher: squared distances, each weighted by how much its weight matters to the predictions."""

    kind = L2SPFisher
    name: Literal["l2spfisher"]


class GLSPFisherConfig(FisherConfig):
    """GL-SP-Fisher: the group lasso over output channels, weighted in the same way."""

    kind = GLSPFisher
    name: Literal["glspfisher"]


class MARSConfig(RegularizerConfig):
    """MARS: a bound on how far each output channel may be from its start, without a pull inside it."""

    kind = MARS
    name: Literal["mars"]
    radius: float = Field(gt=0, allow_inf_nan=False)
    """Largest sum of the absolute distances of an output channel's weights, in every branch."""
    beta: StrengthConfig
    """Pull on new weights, in loss per squared weight, or a pace. A branch may set its own."""

    @property
    def alpha(self) -> float:
        """The radius, which takes the place of alpha."""
        return self.radius

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer with these bounds and strengths by branch."""
        return MARS(model, anchors=anchors, radius=alpha, beta=beta)


class NoneConfig(Config):
    """No regularization: the control of every experiment."""

    name: Literal["none"]


AnyRegularizer = (
    L2Config
    | L2SPConfig
    | L1SPConfig
    | GLSPConfig
    | L2SPFisherConfig
    | GLSPFisherConfig
    | DirectionSPConfig
    | SPDConfig
    | CautiousL2SPConfig
    | MARSConfig
    | NoneConfig
)
"""All that `regularizer` can be; its `name` says which."""
