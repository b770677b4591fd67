"""The `optimizer` section of an experiment: one class for each optimizer.

None decays weights by itself: the regularizer does that, by its own strengths.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from mtsp.config import Config

Fused = Literal["auto"] | bool
"""Whether torch updates all weights in one kernel; `auto`: on a GPU."""


def is_fused(setting: Fused) -> bool | None:
    """Return torch's argument `fused`; None leaves the choice to torch."""
    return setting if setting != "auto" else (True if torch.cuda.is_available() else None)


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    fused: Fused = "auto"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        fused = is_fused(self.fused)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


class AdamConfig(Config):
    """Adam, or AdamW: the same steps, with a decoupled regularizer in place of the decay. `auto` is decoupled for both,
    and `adamw` allows nothing else.
    """

    name: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    fused: Fused = "auto"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=is_fused(self.fused))


class RMSPropConfig(Config):
    """RMSProp with momentum, as Inception-V3 was trained (Szegedy et al., CVPR 2016, section 8)."""

    name: Literal["rmsprop"]
    lr: float = Field(gt=0)
    decay: float = Field(default=0.9, gt=0, lt=1)
    """Decay of the running mean of squared gradients."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1.0, gt=0)
    """Constant added to the root of the mean square (TensorFlow adds it under the root); Inception uses 1."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.decay, momentum=self.momentum, eps=self.eps)


class MuonConfig(Config):
    """Muon (Jordan et al., 2024) for matrices and convolutions, AdamW for all other weights, in timm's implementation.

    The steps have the size of AdamW's (Liu et al., arXiv:2502.16982), so both use one learning rate. Weights with a
    side below 4, or one side 128 times the other, go to AdamW, as do depthwise convolutions.
    """

    name: Literal["muon"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = False
    """Nesterov's momentum, as in the first Muon; timm then gives the other weights NAdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of AdamW's running means."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        from timm.optim.muon import Muon

        return Muon(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, betas=self.betas)


class LionConfig(Config):
    """Lion (Chen et al., arXiv:2302.06675), which moves weights by the sign of a momentum; its usual learning rate is a
    third to a tenth of AdamW's.
    """

    name: Literal["lion"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.99)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        from timm.optim.lion import Lion

        return Lion(groups, lr=self.lr, betas=self.betas)


class LambConfig(Config):
    """LAMB (You et al., arXiv:1904.00962): Adam, with each weight tensor's step as long as the tensor, times lr.

    timm clips the gradient to norm 1; here `train.clip` does that, if asked for.
    """

    name: Literal["lamb"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        from timm.optim.lamb import Lamb

        # Without weight decay, timm scales no step by the length of its weight unless it is told to.
        return Lamb(
            groups, self.lr, betas=self.betas, eps=self.eps, weight_decay=0.0, max_grad_norm=None, always_adapt=True
        )


OptimizerConfig = Annotated[
    SGDConfig | AdamConfig | RMSPropConfig | MuonConfig | LionConfig | LambConfig, Field(discriminator="name")
]
"""Any `optimizer` section; its `name` selects the class."""
