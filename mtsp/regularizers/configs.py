"""What an experiment's `regularizer` section can be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator
from torch import Tensor, nn

from mtsp.config import Config
from mtsp.fisher.estimate import fisher_of
from mtsp.optim import OptimizerConfig
from mtsp.regularizers.base import Anchored
from mtsp.regularizers.checks import refuse_placement
from mtsp.regularizers.members import GLSP, L1SP, L2SP, DirectionSP, GLSPFisher, L2SPFisher
from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.rates import automatic
from mtsp.regularizers.selective import MARS, SPD, CautiousL2SP
from mtsp.regularizers.strength import Pace, fastest, half_life


class PaceConfig(Config):
    """A strength, said as a speed: `{time_constant: 2000}`, `{half_life: 1000}` or `{remaining: 0.05}`.

    It becomes a number by each branch's own learning rate, and by the momentum where that counts. `remaining` is
    strength as a ratio: of the distance after a run of the pull alone to the distance before it. The ratio of the pull
    to the data's gradient cannot be set: it is zero at the start, where the distance is, and changes with every step; a
    run reports it. To first order, as :class:`Pace`: what is left at the end differs a little, more in a short run.
    """

    time_constant: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Steps in which the pull alone, at the full learning rate, brings a weight to 1/e of its distance."""
    half_life: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Steps in which it halves the distance."""
    remaining: float | None = Field(default=None, gt=0, lt=1)
    """Share of the distance that the pull alone leaves at the end of the run: in all steps in which the branch learns,
    at the rates that the schedule gives them. Another train.steps makes it another number."""

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

    def pace(self, run: float) -> Pace:
        """Return the pace. `run` is the length of the branch's run, in steps at the full learning rate."""
        if self.remaining is not None:
            return Pace(run, self.remaining)
        if self.half_life is not None:
            return half_life(self.half_life)
        assert self.time_constant is not None
        return Pace(self.time_constant)


def _form(value: Any) -> str:
    return "PaceConfig" if isinstance(value, dict | PaceConfig) else "number"


StrengthConfig = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False), Tag("number")] | Annotated[PaceConfig, Tag("PaceConfig")],
    Discriminator(_form),
]
"""A number, or a pace."""

Numbers = Mapping[str, float]
"""Strengths by branch."""


class FamilyConfig(Config):
    """What every regularizer's section knows of it."""

    kind: ClassVar[type[Anchored]] = L2SP

    @classmethod
    def paced(cls) -> tuple[str, ...]:
        """Return the strengths that take the same share of every distance away in each step: they may be a pace."""
        forms = {"alpha": cls.kind.form, "beta": cls.kind.new_form}
        return tuple(key for key, form in forms.items() if form.proportional)

    def acts(self, optimizer: OptimizerConfig) -> Mode:
        """Return where the pull enters a step of this optimizer."""
        return automatic(self.kind.form, is_sgd=optimizer.name == "sgd")

    def no_pace(self, key: str, optimizer: OptimizerConfig) -> str | None:
        """Return why `alpha` or `beta` must be a number through this optimizer; None if a pace will do."""
        if key not in self.paced():
            return f"{self.kind.__name__} takes no fixed share of the distance away in a step; give a number"
        if self.acts(optimizer) == "coupled" and optimizer.name != "sgd":
            return (
                f"a coupled pull through {optimizer.name} has no pace, it depends on the size of the gradients; use "
                "mode auto or decoupled, or give a number"
            )
        return None

    def fastest(self, optimizer: OptimizerConfig) -> float:
        """Return the largest rate of a pace through this optimizer: faster ones go past the anchor."""
        if optimizer.name != "sgd" or self.acts(optimizer) != "coupled":
            return 1.0
        return fastest(optimizer.momentum, nesterov=optimizer.nesterov)

    def number(self, pace: Pace, lr: float, optimizer: OptimizerConfig) -> float:
        """Return the strength that has this pace at this learning rate, as attaching the regularizer would."""
        momentum = optimizer.momentum if optimizer.name == "sgd" and self.acts(optimizer) != "decoupled" else 0.0
        return pace.strength(lr / (1 - momentum))


class AnchoredConfig(FamilyConfig):
    """What every regularizer but mars can be told."""

    to_zero: ClassVar[bool] = False

    alpha: StrengthConfig
    """Pull on pretrained weights, in loss per squared distance (l1sp, glsp: per distance), or a pace. A branch may set
    its own."""
    beta: StrengthConfig
    """Pull on new weights, in loss per squared weight, or a pace. A branch may set its own."""
    mode: Mode = "auto"

    @model_validator(mode="after")
    def _can_act_there(self) -> "AnchoredConfig":
        refuse_placement(self.kind.__name__, self.kind.form, self.mode)
        return self

    def acts(self, optimizer: OptimizerConfig) -> Mode:
        """Return where the pull enters a step of this optimizer."""
        return super().acts(optimizer) if self.mode == "auto" else self.mode

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Anchored:
        """Return the regularizer with these strengths, by branch."""
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, mode=self.mode, zero=self.to_zero)


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


class FisherConfig(AnchoredConfig):
    """What the regularizers that weigh with Fisher information can be told besides."""

    fisher: str
    """The file that `python tools/fisher.py --config THIS --out FILE` writes. Divided by its mean over the pretrained
    weights, so that alpha compares with that of l2sp (glsp)."""

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Anchored:
        """Return the regularizer with these strengths, by branch.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not of the weights that the anchors are.
        """
        fisher = fisher_of(Path(self.fisher), anchors)
        return self.kind(model, anchors=anchors, alpha=alpha, beta=beta, mode=self.mode, fisher=fisher)


class L2SPFisherConfig(FisherConfig):
    """L2-SP-Fisher: squared distances, each weighted with how much its weight matters to the predictions."""

    kind = L2SPFisher
    name: Literal["l2spfisher"]


class GLSPFisherConfig(FisherConfig):
    """GL-SP-Fisher: the group lasso over output channels, weighted likewise."""

    kind = GLSPFisher
    name: Literal["glspfisher"]


class MARSConfig(FamilyConfig):
    """MARS: a bound on how far each output channel may be from its start, and no pull inside it."""

    kind = MARS
    name: Literal["mars"]
    radius: float = Field(gt=0, allow_inf_nan=False)
    """The most that the absolute distances of an output channel's weights may sum up to, in every branch."""
    beta: StrengthConfig
    """Pull on new weights, in loss per squared weight, or a pace. A branch may set its own."""

    @property
    def alpha(self) -> float:
        """The radius, where the others have their alpha: what the pretrained weights are held by."""
        return self.radius

    def build(self, model: nn.Module, *, anchors: Mapping[str, Tensor], alpha: Numbers, beta: Numbers) -> Anchored:
        """Return the regularizer with these bounds and strengths, by branch."""
        return MARS(model, anchors=anchors, radius=alpha, beta=beta)


class NoneConfig(Config):
    """No regularization: the control of every experiment."""

    name: Literal["none"]


PullConfig = (
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
"""What `regularizer` can be; its `name` says which."""
