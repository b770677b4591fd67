"""The schema of a config file: all settings of an experiment, in sections."""

import itertools
from bisect import bisect_right
from collections.abc import Container, Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import yaml
from pydantic import Field, model_validator
from torch import Tensor, nn

from mtsp.config import Config
from mtsp.distributed.processors import processors_per_process
from mtsp.evaluation.corruptions import CorruptionsConfig
from mtsp.evaluation.forgetting import SourceConfig
from mtsp.evaluation.tta import AnyTta, NoTtaConfig
from mtsp.optim.groups import depth_scales, longest_prefix, parameter_groups
from mtsp.optim.optimizers import OptimizerConfig
from mtsp.optim.schedule import ScheduleConfig
from mtsp.regularizers import Regularizer
from mtsp.regularizers.configs import AnyRegularizer, NoneConfig, PaceConfig, RegularizerConfig, StrengthConfig
from mtsp.task_weights import TaskWeightsConfig
from mtsp.tasks import Tasks
from mtsp.tracking.tracker import TrackingConfig
from mtsp.training.checkpoint.retention import BestConfig, IntervalConfig
from mtsp.training.ema import EmaConfig

ModelT = TypeVar("ModelT", bound=Config)
DataT = TypeVar("DataT", bound=Config)
Positive = Annotated[int, Field(gt=0)]

SOURCE = "source"
"""Name of the source task in results and curves."""


class ModuleConfig(Config):
    """Settings of a module inside a branch; null: those of the branch, or of the longer module around it."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the module."""
    alpha: StrengthConfig | None = None
    """Regularization strength of the module's pretrained weights."""
    beta: StrengthConfig | None = None
    """Regularization strength of the module's new weights."""
    freeze: bool | None = None
    """Never train the module, and keep the statistics of its normalization layers. False: train it in a frozen
    branch."""


class BranchConfig(Config):
    """A named part of the network, with its own pretrained weights."""

    weights: str | None = None
    """Pretrained weights: `imagenet`, `torchvision`, `torchvision:NAME`, `package:efficientnet-lite0`, `shipped`,
    `hub:OWNER/NAME` or the folder of a shared network, or a file. Null: random (new) weights."""
    mean: tuple[float, float, float] | None = None
    """Mean to subtract from frames (RGB, values in [0, 1]); null: the mean that the weights were trained with."""
    std: tuple[float, float, float] | None = None
    """Standard deviation to divide frames by (RGB); null: the one that the weights were trained with."""
    reuse: Literal["all"] | tuple[str, ...] | dict[str, str] = ()
    """Classes of the data that `weights` can classify: their rows of the last layers are kept and anchored, and rows of
    other classes stay new. Names, or `{name: name in the weights}` (of a run, or ImageNet's: `n01443537`, `goldfish`),
    or `all` that both have. Empty: layers that depend on the classes are loaded only if all of them fit."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the branch; null: the learning rate of `optimizer`."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate from each pretrained block to the one before it; new blocks, as a head, have the
    branch's own. The strengths are the same in all blocks, or, set as a pace, reach that pace in each."""
    alpha: StrengthConfig | None = None
    """Regularization strength of the branch's pretrained weights; null: `regularizer.alpha`."""
    beta: StrengthConfig | None = None
    """Regularization strength of the branch's new weights; null: `regularizer.beta`."""
    freeze: bool = False
    """Never train the branch, and keep the statistics of its normalization layers."""
    freeze_norm: bool = False
    """Train the branch, but keep the statistics of its batch normalization."""
    modules: dict[str, ModuleConfig] = Field(default={})
    """Settings of modules inside the branch, by their names: `{layer4: {lr: 1e-3}, layer1.0: {freeze: true}}`."""

    @model_validator(mode="after")
    def _weights_are_given(self) -> "BranchConfig":
        if self.weights is None and (self.mean or self.std):
            raise ValueError("`mean` and `std` need pretrained `weights`, but `weights` is null; leave them out")
        if self.weights is None and self.layer_decay:
            raise ValueError("`layer_decay` needs pretrained `weights`, but `weights` is null; leave it out")
        if self.weights is None and self.reuse:
            raise ValueError("`reuse` needs pretrained `weights`, but `weights` is null; name them, or leave it out")
        return self

    @property
    def learns(self) -> bool:
        """Whether any module of the branch is trained."""
        return not self.freeze or any(module.freeze is False for module in self.modules.values())


class StageConfig(Config):
    """A stage of training: a number of steps that train the same branches on the same data."""

    steps: Positive
    batch_size: dict[str, Positive] = Field(min_length=1)
    """Number of samples of each data entry in one optimizer step, over all processes and micro-batches."""
    learn: tuple[str, ...] | None = None
    """Branches to train; all other branches and their batch-norm statistics are frozen. Null: train all."""


class TrainConfig(Config):
    """Length and stages of the training, and how a step is computed."""

    steps: Positive
    """Number of optimizer steps of the run. The stages are repeated in turn until then."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    accumulate: Positive = 1
    """Number of micro-batches that each process splits its part of a batch into: the same result with less memory."""
    clip: float | None = Field(default=None, gt=0)
    """Clip the gradient of the losses to this norm; null: no clipping. The regularizer's gradient is not clipped."""
    task_weights: TaskWeightsConfig | None = None
    """Learn a factor of the losses of each task, from the uncertainty of the task; null: the losses add up as they
    are."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`auto` is bf16 if the hardware supports it (a GPU, or a CPU with AMX), else fp32."""
    ema: EmaConfig | None = None
    """Running average of the weights to evaluate and export; null: use the last weights."""
    channels_last: bool = True
    compile: bool = False
    checkpoint_activations: bool = False
    """Keep only the inputs of the network's repeated blocks, and compute what is inside them anew in the backward pass:
    the same numbers in less memory and more time."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of worker processes that decode and augment, per training process; in evaluation, decoding threads.
    `auto`: the machine's processors, divided among its training processes, less one for training, and at most 8."""
    save_every: Positive | IntervalConfig = 500
    """Number of steps between checkpoints, or `{seconds: 600}`."""
    async_save: bool = True
    """Write checkpoints in a thread while the training goes on. It needs memory for a copy of the run's state."""
    keep_last: Positive = 2
    """Number of checkpoints to keep, besides those that the settings below keep."""
    keep_every: Positive | None = None
    """Also keep the checkpoints of steps that are a multiple of this number."""
    keep_best: BestConfig | None = None
    """Also keep the best checkpoint by a metric, such as `{metric: davis_val/J_mean, goal: max}`; a checkpoint is then
    saved before each validation."""
    keep_before_spike: int = Field(default=2, ge=0)
    """Number of loss spikes, counted from the last, before which the newest checkpoint is also kept."""
    timeout: float = Field(default=1800.0, gt=0)
    """Number of seconds that a process waits for the other processes before the run ends with an error."""

    @property
    def entries(self) -> list[str]:
        """Names of the data entries that any stage trains on, in the order of the stages."""
        return list(dict.fromkeys(name for stage in self.stages for name in stage.batch_size))

    def worker_count(self) -> int:
        """Return `workers` as a number on this machine."""
        if self.workers != "auto":
            return self.workers
        return min(8, processors_per_process() - 1)


class EvaluationConfig(Config, Generic[ModelT]):
    """Evaluation during training and at the end."""

    data: tuple[str, ...] = ()
    """Entries of `data` to evaluate, at native resolution and without augmentation."""
    every: Positive | None = None
    """Number of steps between evaluations; null: evaluate only at the end."""
    at_start: bool = True
    """Also evaluate before the first step."""
    batch_size: Positive = 1
    """Number of samples of equal size to evaluate at once: faster on a GPU, but the last digits of results may
    change."""
    tta: AnyTta = NoTtaConfig()
    """Test-time augmentation: scores of the whole image, or sums of the scores over several crops or scales."""
    source: SourceConfig[ModelT] | None = None
    """Also measure the source task, to see what fine-tuning forgets; null: do not. The share that is retained is known
    if `at_start` is true."""
    corruptions: CorruptionsConfig | None = None
    """Also measure the final weights on corrupted images; null: do not."""


class Experiment(Config, Generic[ModelT, DataT]):
    """All settings of a run. `ModelT` and `DataT` are the caller's config types of networks and data."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run's folder, and of the run in trackers."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelT
    branches: dict[str, BranchConfig]
    data: dict[str, DataT]
    tasks: Tasks
    regularizer: Annotated[AnyRegularizer, Field(discriminator="name")]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    evaluation: EvaluationConfig[ModelT] = Field(default={}, validate_default=True)
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _names_exist(self) -> "Experiment[ModelT, DataT]":
        wrong = self._ignored()
        if not self.tasks.wanted:
            wrong.append(f"tasks: there is nothing to learn; set one of {', '.join(type(self.tasks).model_fields)}")
        if self.train.task_weights is not None and len(self.tasks.wanted) < 2:
            wrong.append("train.task_weights: weighs tasks against each other, and there is one; leave it out")
        if self.branches and not any(branch.learns for branch in self.branches.values()):
            wrong.append("branches: all are frozen, so nothing would be trained; set `freeze: false` for one")
        try:
            self.strengths()
        except ValueError as error:
            wrong += str(error).splitlines()
        wrong += self._stage_mistakes() + self._evaluation_mistakes() + self._source_mistakes()
        name = self.regularizer.name
        if name not in ("l2", "none") and not any(branch.weights for branch in self.branches.values()):
            wrong.append(f"regularizer: {name} needs a branch with pretrained `weights`; if there is none, use l2")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _ignored(self) -> list[str]:
        """Return an error for each branch setting that the configured regularizer ignores."""
        unused = {
            "none": (("alpha", "beta"), "ignored by regularizer none; leave it out, or use l2 or l2sp"),
            "mars": (("alpha",), "ignored by regularizer mars, which uses one radius for all branches; leave it out"),
        }
        keys, reason = unused.get(self.regularizer.name, ((), ""))
        lines = [
            f"{place}.{key}: {reason}"
            for place, section in self._places().items()
            for key in keys
            if getattr(section, key) is not None
        ]
        if self.optimizer.name == "adamw" and getattr(self.regularizer, "mode", "auto") == "coupled":
            lines.append("regularizer.mode: adamw decouples the pull; set `mode: auto`, or `optimizer.name: adam`")
        return lines

    def _stage_mistakes(self) -> list[str]:
        """Return an error for each unknown name in `train.stages`, and for each branch there that cannot learn."""
        data, branches, wrong = ", ".join(self.data), ", ".join(self.branches), []
        for index, stage in enumerate(self.train.stages):
            place = f"train.stages.{index}"
            if stage.learn == ():
                wrong.append(f"{place}.learn: names no branch, so nothing would be trained; null trains all branches")
            unknown = [name for name in stage.batch_size if name not in self.data]
            wrong += [f"{place}.batch_size.{name}: no such entry in `data`; there is {data}" for name in unknown]
            for branch in stage.learn or ():
                if branch not in self.branches:
                    wrong.append(f"{place}.learn: no branch {branch!r}; there is {branches}")
                elif not self.branches[branch].learns:
                    wrong.append(f"{place}.learn: {branch} cannot learn, branches.{branch}.freeze is true")
        return wrong

    def _evaluation_mistakes(self) -> list[str]:
        """Return an error for each unknown name in `evaluation.data`, and if `train.keep_best` names none of them."""
        known, measured, best = ", ".join(self.data), self.evaluation.data, self.train.keep_best
        unknown = [name for name in measured if name not in self.data]
        wrong = [f"evaluation.data: no entry {name!r} in `data`; there is {known}" for name in unknown]
        if best is not None and best.metric.partition("/")[0] not in measured:
            entries = ", ".join(measured) or "none"
            wrong.append(f"train.keep_best.metric: {best.metric} is not of an entry of evaluation.data ({entries})")
        return wrong

    def _source_mistakes(self) -> list[str]:
        """Return an error for each name in the sections `source` and `corruptions` of `evaluation` that is unknown."""
        source, corruptions = self.evaluation.source, self.evaluation.corruptions
        wrong = []
        if source is not None:
            if source.data not in self.data:
                wrong.append(
                    f"evaluation.source.data: no entry {source.data!r} in `data`; there is {', '.join(self.data)}"
                )
            heads = source.heads if source.model is None else {}
            wrong += [
                f"evaluation.source.heads: no branch {name!r}; there is {', '.join(self.branches)}"
                for name in heads
                if name not in self.branches
            ]
            if heads.keys() >= self.branches.keys():
                wrong.append("evaluation.source.heads: names all branches, so no fine-tuned branch would be measured")
            if SOURCE in self.evaluation.data:
                wrong.append(f"evaluation.data: results name the source task {SOURCE!r}; rename this entry of `data`")
        if corruptions is not None and (odd := [n for n in corruptions.data if n not in self.evaluation.data]):
            wrong.append(f"evaluation.corruptions.data: {odd[0]!r} is not in evaluation.data")
        return wrong

    def source_experiment(self) -> "Experiment[ModelT, DataT]":
        """Return the experiment with the network of the source task: its number of classes and its old heads."""
        source = self.evaluation.source
        assert source is not None
        if source.model is not None:
            heads = {name: BranchConfig(weights=file) for name, file in source.heads.items()}
            return self.model_copy(update={"model": source.model, "branches": heads})
        model = self.model if source.classes is None else self.model.model_copy(update={"classes": source.classes})
        branches = {name: branch.model_copy(update={"reuse": ()}) for name, branch in self.branches.items()}
        branches |= {name: branches[name].model_copy(update={"weights": file}) for name, file in source.heads.items()}
        return self.model_copy(update={"model": model, "branches": branches})

    def _places(self) -> dict[str, "BranchConfig | ModuleConfig"]:
        """Return the sections of all branches and modules by their keys in the config."""
        places: dict[str, BranchConfig | ModuleConfig] = {}
        for name, branch in self.branches.items():
            places[f"branches.{name}"] = branch
            places |= {f"branches.{name}.modules.{module}": section for module, section in branch.modules.items()}
        return places

    @property
    def prefixes(self) -> list[str]:
        """Names of the branches, and of the modules with own settings: `backbone`, `backbone.layer4`."""
        return [place.removeprefix("branches.").replace(".modules.", ".", 1) for place in self._places()]

    @property
    def frozen(self) -> dict[str, bool]:
        """Whether each branch and each module with own settings never trains."""
        return {prefix: bool(self._setting(prefix, "freeze")[0]) for prefix in self.prefixes}

    def _setting(self, prefix: str, key: str) -> tuple[Any, str | None]:
        """Return a setting of a branch or module and the key that sets it; None where it is left to the default."""
        branch, _, module = prefix.partition(".")
        modules = self.branches[branch].modules
        while (around := longest_prefix(module, modules)) is not None:
            if (value := getattr(modules[around], key)) is not None:
                return value, f"branches.{branch}.modules.{around}.{key}"
            module = around.rpartition(".")[0]
        value = getattr(self.branches[branch], key)
        return value, None if value is None else f"branches.{branch}.{key}"

    def strengths(self, scales: Mapping[str, float] | None = None) -> tuple[dict[str, float], dict[str, float]]:
        """Return alpha and beta of each branch and module as numbers; for mars, alpha is the radius.

        A strength set as a pace is 0 if it has no effect: `remaining` in a branch that never trains, and alpha in a
        branch without pretrained weights.

        Args:
            scales: factors of the learning rate by weight name, from :meth:`lr_scales`. Where the strength is set as a
                pace, these weights have strengths of their own, at which they all have this pace.

        Raises:
            ValueError: a pace cannot be converted; the message has one line for each, with its key.
        """
        section = self.regularizer
        if isinstance(section, NoneConfig):
            return {}, {}
        found: dict[str, dict[str, float]] = {"alpha": {}, "beta": {}}
        wrong, prefixes = [], self.prefixes
        for key, numbers in found.items():
            for prefix in prefixes:
                own, place = self._setting(prefix, key)
                strength = getattr(section, key) if place is None else own
                try:
                    numbers[prefix] = self._number(section, key, strength, prefix)
                except ValueError as error:
                    wrong.append(f"{place or f'regularizer.{key}'}: {error}")
                    continue
                if isinstance(strength, PaceConfig):
                    scaled = {n: s for n, s in (scales or {}).items() if longest_prefix(n, prefixes) == prefix}
                    numbers |= {name: numbers[prefix] / scale for name, scale in scaled.items()}
        if wrong:
            raise ValueError("\n".join(dict.fromkeys(wrong)))
        return found["alpha"], found["beta"]

    def _number(self, section: RegularizerConfig, key: str, strength: float | PaceConfig, prefix: str) -> float:
        if not isinstance(strength, PaceConfig):
            return strength
        steps = self._full_rate_steps(prefix) if strength.remaining is not None else float("inf")
        if not steps or (key == "alpha" and self.branches[prefix.partition(".")[0]].weights is None):
            return 0.0
        return section.strength(key, strength.pace(steps), self.learning_rates()[prefix], self.optimizer)

    def _full_rate_steps(self, prefix: str) -> float:
        """Return the sum of the learning-rate factors over all steps in which the branch or module learns."""
        if self.frozen[prefix]:
            return 0.0
        plan, branch = self.train, prefix.partition(".")[0]
        learns = [stage.learn is None or branch in stage.learn for stage in plan.stages for _ in range(stage.steps)]
        return sum(self.schedule.lr_factor(t, plan.steps) for t in range(plan.steps) if learns[t % len(learns)])

    def learning_rates(self) -> dict[str, float]:
        """Return the full learning rate of each branch and module, before any layer decay."""
        return {prefix: self._setting(prefix, "lr")[0] or self.optimizer.lr for prefix in self.prefixes}

    def lr_scales(self, model: nn.Module, pretrained: Container[str]) -> dict[str, float]:
        """Return the factors of layer decay by weight name; see :func:`mtsp.optim.groups.depth_scales`.

        Args:
            model: the network.
            pretrained: names of the weights that have an anchor.
        """
        scales: dict[str, float] = {}
        for name, branch in self.branches.items():
            if branch.layer_decay is not None:
                scales |= depth_scales(model, name, branch.layer_decay, pretrained)
        return scales

    def build_optimizer(self, model: nn.Module, pretrained: Container[str]) -> torch.optim.Optimizer:
        """Return the optimizer of the network, with a group for each learning rate; see :meth:`lr_scales`."""
        groups = parameter_groups(model, self.learning_rates(), self.lr_scales(model, pretrained))
        return self.optimizer.build(groups)

    def build_regularizer(self, model: nn.Module, anchors: Mapping[str, Tensor]) -> Regularizer | None:
        """Return the regularizer of the network, to be attached to its optimizer; None for `none`."""
        if isinstance(self.regularizer, NoneConfig):
            return None
        alpha, beta = self.strengths(self.lr_scales(model, anchors))
        return self.regularizer.build(model, anchors=anchors, alpha=alpha, beta=beta)


AnyExperiment = Experiment[Any, Any]


def as_yaml(experiment: AnyExperiment) -> str:
    """Return the resolved experiment as the text of a config file that loads as an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=120)


def stage_at(stages: tuple[StageConfig, ...], step: int) -> StageConfig:
    """Return the stage of optimizer step `step` (from 0); after the last stage, the first begins again."""
    ends = list(itertools.accumulate(stage.steps for stage in stages))
    return stages[bisect_right(ends, step % ends[-1])]
