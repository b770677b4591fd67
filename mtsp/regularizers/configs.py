"""The `regularizer` section of an experiment: one class for each regularizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_serializer, model_validator
from torch import Tensor, nn

from mtsp.config import Config
from mtsp.fisher.estimate import fisher_of
from mtsp.optim.groups import longest_prefix
from mtsp.optim.optimizers import OptimizerConfig
from mtsp.regularizers.base import Regularizer
from mtsp.regularizers.members import GLSP, L1SP, L2SP, MARS, SPD, CautiousL2SP, DirectionSP, GLSPFisher, L2SPFisher
from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.rates import resolve_mode, strength_of
from mtsp.regularizers.strength import Pace, by_depth, half_life
from mtsp.regularizers.targets import under


class PaceConfig(Config):
    """Set a strength by its speed: `{time_constant: 2000}`, `{half_life: 1000}` or `{remaining: 0.05}`.

    The pace is converted to a number with the learning rate of each branch, and with the momentum if the mode depends
    on it. As for :class:`Pace`, the conversion is to first order, so the true remaining distance differs a little, more
    in a short run. The ratio of the pull to the gradient of the loss cannot be set, because it is zero at the start
    and changes with every step; a run reports it instead.
    """

    time_constant: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Number of steps after which the pull alone, at the full learning rate, leaves 1/e of a weight's distance."""
    half_life: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Number of steps after which the pull alone, at the full learning rate, leaves half of a weight's distance."""
    remaining: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the distance that the pull alone leaves at the end of the run, computed from the schedule and the
    stages that train the branch. The strength depends on train.steps."""

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
        """Return the pace. `steps` is how long the branch is trained, in equivalent steps at the full learning rate."""
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

    anchor_dtype: Literal["fp32", "bf16"] | None = None
    """Number format of the anchors; null: that of the weights. bf16 takes half the memory, and rounds the anchors."""
    offload: bool = False
    """Keep the anchors in the memory of the CPU and copy them to the GPU block by block, in every step."""

    @property
    def storage(self) -> dict[str, Any]:
        """Arguments of :class:`Regularizer` for where and how the anchors are kept."""
        dtypes = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}
        return {"anchor_dtype": dtypes[self.anchor_dtype], "offload": self.offload}

    @property
    def kind(self) -> type[Regularizer]:
        """Class of the regularizer."""
        return _KINDS[getattr(self, "name")]  # noqa: B009

    def strength(
        self, key: str, pace: Pace, lr: float, optimizer: OptimizerConfig, *, may_overshoot: bool = False
    ) -> float:
        """Return the number that this pace is converted to when the regularizer is attached.

        Args:
            key: `alpha` or `beta`.
            pace: how fast the pull alone should be.
            lr: learning rate before any schedule lowers it.
            optimizer: `optimizer` section of the experiment.
            may_overshoot: accept a pace so fast that the weights swing past their anchors.

        Raises:
            ValueError: this optimizer cannot reach the pace, or this strength cannot be set as a pace.
        """
        self.kind.check_pace(key)
        built = optimizer.build([{"params": [torch.zeros(1)], "lr": lr}])
        mode = resolve_mode(self.kind.shared_penalty, getattr(self, "mode", "auto"), built)
        return strength_of(pace, built, built.param_groups[0], mode, may_overshoot=may_overshoot)


class PenaltyConfig(RegularizerConfig):
    """Settings that all regularizers except mars share."""

    alpha: StrengthConfig
    """Strength of the pull on pretrained weights: loss per squared distance (l1sp, glsp: per distance), or a pace. A
    branch can override it."""
    beta: StrengthConfig
    """Strength of the pull of new weights to zero: loss per squared weight, or a pace. A branch can override it."""
    mode: Mode = "auto"
    """How the pull is applied: coupled (added to the gradient), decoupled (as in AdamW), proximal (after the step), or
    auto, which chooses by penalty and optimizer."""

    @model_validator(mode="after")
    def _mode_is_possible(self) -> "PenaltyConfig":
        self.kind.check_mode(self.mode)
        return self


class SPConfig(PenaltyConfig):
    """A regularizer that its strengths describe."""

    name: Literal["l2", "l2sp", "l2spk", "l1sp", "glsp", "directionsp", "spd", "cautiousl2sp"]
    """l2: every convolution and linear weight is pulled to zero, the baseline of the papers. l2sp: pretrained weights
    are pulled to their start, new ones to zero (equation 3 of the paper). l2spk: as l2sp, with an alpha that falls with
    depth, from its value at the first layer of a branch to one n-th of it at the last of n. l1sp, glsp: absolute
    distances; group lasso over output channels. Both are proximal by default, so that some weights stay exactly at
    their start. directionsp: the direction of filters, for convolutions followed by a normalization layer. spd:
    selective projection decay; alpha is a fraction of the distance and does not depend on the learning rate.
    cautiousl2sp: decoupled l2sp, only on entries that the optimizer's update moves in the same direction."""

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer with these strengths by branch or module."""
        if self.name == "l2spk":
            alpha = {**alpha, **_by_depth(model, anchors, alpha)}
        options = {"mode": self.mode, "zero": self.name == "l2", **self.storage}
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, **options)


def _by_depth(model: nn.Module, anchors: Mapping[str, Tensor], alpha: Numbers) -> dict[str, float]:
    """Return alpha of each weight that has an anchor, by its depth in its branch."""
    factors: dict[str, float] = {}
    for branch in dict.fromkeys(name.partition(".")[0] for name in anchors):
        factors |= by_depth(model, 1.0, shared={name: None for name in anchors if under(name, branch)})
    return {
        name: factor * alpha[prefix]
        for name, factor in factors.items()
        if (prefix := longest_prefix(name, alpha)) is not None
    }


class FisherConfig(PenaltyConfig):
    """A regularizer that uses Fisher information: how much each weight affects the predictions."""

    name: Literal["l2spfisher", "glspfisher"]
    """l2spfisher: squared distances. glspfisher: group lasso over output channels."""
    fisher: str
    """File written by `python tools/fisher.py --config THIS --out FILE`. The values are divided by their mean over the
    pretrained weights, so that alpha is comparable with the alpha of l2sp (glsp)."""

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer with these strengths by branch or module.

        Raises:
            FileNotFoundError: the Fisher file does not exist.
            ValueError: the file was estimated at weights other than the anchors.
        """
        fisher = fisher_of(Path(self.fisher), anchors)
        options = {"mode": self.mode, "fisher": fisher, **self.storage}
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, **options)


class MARSConfig(RegularizerConfig):
    """MARS: bound the distance of each output channel from its start; there is no pull within the bound."""

    name: Literal["mars"]
    radius: float = Field(gt=0, allow_inf_nan=False)
    """Upper bound on the sum of absolute distances of the weights of an output channel; the same in every branch."""
    beta: StrengthConfig
    """Strength of the pull of new weights to zero: loss per squared weight, or a pace. A branch can override it."""

    @property
    def alpha(self) -> float:
        """The radius, which MARS uses instead of alpha."""
        return self.radius

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Regularizer:
        """Return the regularizer; `alpha` holds the radius of each branch."""
        return MARS(model, anchors=anchors, radius=alpha, beta=beta, **self.storage)


class NoneConfig(Config):
    """No regularization: the control of every experiment."""

    name: Literal["none"]


_KINDS: dict[str, type[Regularizer]] = {
    **dict.fromkeys(("l2", "l2sp", "l2spk"), L2SP),
    "l1sp": L1SP,
    "glsp": GLSP,
    "directionsp": DirectionSP,
    "spd": SPD,
    "cautiousl2sp": CautiousL2SP,
    "l2spfisher": L2SPFisher,
    "glspfisher": GLSPFisher,
    "mars": MARS,
}

AnyRegularizer = SPConfig | FisherConfig | MARSConfig | NoneConfig
"""Any `regularizer` section; its `name` selects the class."""
