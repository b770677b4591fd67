"""An experiment: everything that a run depends on, in one file of sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from mtsp.config import Config, ConfigError
from mtsp.optim import OptimizerConfig, ScheduleConfig
from mtsp.regularizers import L2Config, L2SPConfig, NoneConfig
from mtsp.tasks import Tasks
from mtsp.tracking import TrackingConfig

ModelT = TypeVar("ModelT", bound=Config)
DataT = TypeVar("DataT", bound=Config)
Positive = Annotated[int, Field(gt=0)]


class BranchConfig(Config):
    """One named part of the network, with its own pretrained origin."""

    weights: str | None = None
    """Where it starts: `imagenet`, `package:efficientnet-lite0`, or a file. Null: random weights, all of them new."""
    lr: float | None = Field(default=None, gt=0)
    """Its learning rate; null: the optimizer's."""
    alpha: float | None = Field(default=None, ge=0)
    """Pull on its pretrained weights; null: the regularizer's."""
    beta: float | None = Field(default=None, ge=0)
    """Pull on its new weights; null: the regularizer's."""
    freeze: bool = False
    """Never train it; its normalization layers keep their statistics."""
    freeze_norm: bool = False
    """Train it, but keep the statistics of its batch normalization."""


class StageConfig(Config):
    """A number of steps that learn the same branches from the same data."""

    steps: Positive
    batches: dict[str, Positive] = Field(min_length=1)
    """Samples of each data entry in one optimizer step, over all processes and micro-batches."""
    learn: tuple[str, ...] | None = None
    """Branches that learn; the others are held, statistics included. Null: all."""


class TrainConfig(Config):
    """How long, from what, and how a step is computed."""

    steps: Positive
    """Optimizer steps of the run. The stages follow each other and begin again until then."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    accumulate: Positive = 1
    """Micro-batches that a process splits its share of a batch into. The result is the same, the memory is not."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of the losses. The regularizer's pull is not clipped."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`auto`: bf16 where the machine computes in it (CUDA, or a CPU with AMX), else fp32."""
    channels_last: bool = True
    compile: bool = False
    workers: int = Field(default=2, ge=0)
    """Processes that decode and augment, per training process."""
    save_every: Positive = 500
    keep: Positive = 2
    """Checkpoints that stay."""


class EvaluationConfig(Config):
    """What is measured while training, and at the end."""

    data: tuple[str, ...] = ()
    """Entries of `data`, evaluated at their native resolution, without augmentation."""
    every: Positive | None = None
    """Steps between evaluations; null: only at the end."""
    at_start: bool = True
    """Also before the first step: what fine-tuning begins with."""


class Experiment(Config, Generic[ModelT, DataT]):
    """A whole run. `ModelT` and `DataT` are the networks and the datasets that the caller knows."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Of the run's folder and its tracker entry."""
    seed: int = Field(default=0, ge=0)
    model: ModelT
    branches: dict[str, BranchConfig]
    data: dict[str, DataT]
    tasks: Tasks
    regularizer: Annotated[L2Config | L2SPConfig | NoneConfig, Field(discriminator="name")]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _names_exist(self) -> "Experiment[ModelT, DataT]":
        wrong = []
        for index, stage in enumerate(self.train.stages):
            for name in stage.batches:
                if name not in self.data:
                    wrong.append(f"train.stages.{index}.batches.{name}: no such data; there is {', '.join(self.data)}")
            for branch in stage.learn or ():
                if branch not in self.branches:
                    wrong.append(
                        f"train.stages.{index}.learn: no branch {branch!r}; there is {', '.join(self.branches)}"
                    )
                elif self.branches[branch].freeze:
                    wrong.append(f"train.stages.{index}.learn: {branch} cannot learn, branches.{branch}.freeze is true")
        for name in self.evaluation.data:
            if name not in self.data:
                wrong.append(f"evaluation.data: no such data {name!r}; there is {', '.join(self.data)}")
        if self.regularizer.name == "l2sp" and not any(branch.weights for branch in self.branches.values()):
            wrong.append("regularizer: l2sp needs a branch with pretrained `weights`; without any, use l2")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def strengths(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return alpha and beta by branch."""
        if isinstance(self.regularizer, NoneConfig):
            return {}, {}
        alpha, beta = self.regularizer.alpha, self.regularizer.beta
        return (
            {name: alpha if branch.alpha is None else branch.alpha for name, branch in self.branches.items()},
            {name: beta if branch.beta is None else branch.beta for name, branch in self.branches.items()},
        )

    def learning_rates(self) -> dict[str, float]:
        """Return each branch's full learning rate."""
        return {n: self.optimizer.lr if b.lr is None else b.lr for n, b in self.branches.items()}


def stage_at(stages: tuple[StageConfig, ...], step: int) -> StageConfig:
    """Return the stage of optimizer step `step` (from 0): the stages follow each other and begin again."""
    place = step % sum(stage.steps for stage in stages)
    for stage in stages:
        if place < stage.steps:
            return stage
        place -= stage.steps
    raise AssertionError


FREE_TO_CHANGE = (
    "tracking",
    "evaluation",
    "train.workers",
    "train.save_every",
    "train.keep",
    "train.steps",
)
"""What a resumed run may have otherwise than the run that it continues."""


def check_resumable(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of the differences between two resolved experiments.

    Raises:
        ConfigError: something differs that would make the resumed run another run.
    """
    changed = sorted(_differences(now, then, ""))
    forbidden = [line for line in changed if not line.startswith(FREE_TO_CHANGE)]
    if forbidden:
        lines = "\n".join(f"  {line}" for line in forbidden)
        raise ConfigError(f"this checkpoint belongs to another experiment; start a new run, or set back:\n{lines}")
    return changed


def _differences(now: Any, then: Any, key: str) -> list[str]:
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        return [
            line
            for name in now.keys() | then.keys()
            for line in _differences(now.get(name), then.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if now == then else [f"{key}: now {now!r}, was {then!r}"]
