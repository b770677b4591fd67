"""Training and evaluation: functions that read top to bottom, on any number of processes.

One optimizer step takes one global batch of every data entry of its stage. A process computes its share in
micro-batches; every loss is divided by its count over the whole global batch, so that the result does not depend on how
the batch was shared out. Gradients are synchronized once per step.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mtsp.checkpoint import sharded
from mtsp.experiment import StageConfig, stage_at
from mtsp.metrics.davis import DavisMeasure
from mtsp.metrics.flow import FlowErrors
from mtsp.metrics.segmentation import ConfusionMatrix
from mtsp.optim import ScheduleConfig, set_learning_rates
from mtsp.tasks import Tasks
from mtsp.types import IGNORE, Batch, Examples, Outputs


class NonFiniteLoss(FloatingPointError):
    """A loss is NaN or infinite; the message names the step and the term. No weight was changed by it."""


@dataclass
class Position:
    """How far a run is: all that a resumed run needs to know besides tensors."""

    step: int = 0
    """Optimizer steps done."""
    batches: dict[str, int] = field(default_factory=dict)
    """Global batches taken from each stream, `davis:4`: a data entry in batches of one size."""


class StepResult(NamedTuple):
    """What one optimizer step measured, over all processes."""

    losses: dict[str, float]  # weighted terms, and their sum as "loss"
    gradient_norm: float | None  # before clipping; None where nothing is clipped
    samples: int
    stop: bool  # some process was asked to stop


@dataclass
class Parts:
    """What a run is made of, prepared by Accelerate and ready to train."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    tasks: Tasks
    branches: tuple[str, ...]
    held: tuple[str, ...] = ()
    """Branches that never learn."""
    fixed_norm: tuple[str, ...] = ()
    """Branches that learn, but keep the statistics of their batch normalization."""
    channels_last: bool = True
    """Memory format of the images, which should be the network's."""


def train(
    parts: Parts,
    position: Position,
    *,
    steps: int,
    stages: tuple[StageConfig, ...],
    schedule: ScheduleConfig,
    open_stream: Callable[[str, int, int], Generator[Batch, None, None]],
    seed: int,
    accumulate: int = 1,
    clip: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_step: Callable[[StepResult, dict[str, float]], None] = lambda result, rates: None,
) -> bool:
    """Train until `steps` optimizer steps are done or any process is asked to stop; return whether it was asked.

    Args:
        parts: the network, its optimizer and what it learns.
        position: where to go on from; kept up to date.
        steps: length of the whole run, which the schedule spans.
        stages: what is learned from what, in turn.
        schedule: of the learning rates.
        open_stream: (data entry, global batch size, global batch to begin with) -> this process's micro-batches.
        seed: of the network's randomness (dropout): f(seed, step, process).
        accumulate: micro-batches of one process's share of a batch.
        clip: largest gradient norm, or None.
        stop: whether this process was asked to stop. Asked once per step, agreed on by all.
        after_step: called after every step with what it measured and the learning rates; may save or evaluate.

    Raises:
        NonFiniteLoss: on all processes at once, before the weights change.
        ValueError: a sample cannot be read.
    """
    streams: dict[str, Generator[Batch, None, None]] = {}
    stage: StageConfig | None = None
    with contextlib.ExitStack() as opened:  # worker processes end here, whatever happens
        while position.step < steps:
            before, stage = stage, stage_at(stages, position.step)
            if stage is not before:
                hold_all_but(parts, stage.learn)
            seed_model(seed, position.step, parts.accelerator.process_index)
            rates = set_learning_rates(parts.optimizer, schedule.share(position.step, steps))
            micro_batches = []
            for name, size in stage.batches.items():
                key = f"{name}:{size}"
                if key not in streams:
                    stream = open_stream(name, size, position.batches.setdefault(key, 0))
                    streams[key] = opened.enter_context(contextlib.closing(stream))
                micro_batches += [next(streams[key]) for _ in range(accumulate)]
            result = optimizer_step(parts, micro_batches, step=position.step + 1, clip=clip, stop=stop())
            position.step += 1
            for name, size in stage.batches.items():
                position.batches[f"{name}:{size}"] += 1
            after_step(result, rates)
            if result.stop:
                return True
    return False


def optimizer_step(
    parts: Parts, micro_batches: Sequence[Batch], *, step: int, clip: float | None = None, stop: bool = False
) -> StepResult:
    """Take one optimizer step on these micro-batches and those of the other processes; return what was measured."""
    accelerator, model, optimizer = parts.accelerator, parts.model, parts.optimizer
    batches = [to_device(batch, accelerator.device, channels_last=parts.channels_last) for batch in micro_batches]
    counted = [parts.tasks.counts(batch) for batch in batches]
    names = parts.tasks.names  # from the config, not the labels: the same on every process
    local = [sum(int(counts.get(name, 0)) for counts in counted) for name in names]
    samples = sum(len(batch["name"]) for batch in batches)
    *totaled, samples, asked = _sum_over_processes(accelerator, [*local, samples, int(stop)])
    counts = dict(zip(names, totaled, strict=True))

    sums: list[dict[str, Tensor]] = []
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            outputs: Outputs = model(batch["frame"], batch.get("next_frame"))
            totals = parts.tasks.sums(outputs, batch)
            if not totals or counted[index].keys() - totals.keys():
                raise ValueError(
                    f"{batch['name'][0]} has the labels "
                    f"{', '.join(sorted(batch.keys() & {'mask', 'flow'})) or 'none'}, the network gives "
                    f"{', '.join(outputs)}: nothing, or not all, of `tasks` can be learned from it"
                )
            loss = torch.stack([total / max(1.0, counts[name]) for name, total in totals.items()]).sum()
            sums.append({name: total.detach() for name, total in totals.items()})
            # DDP averages the gradients of the processes; the loss is divided by the global count already.
            accelerator.backward(loss * accelerator.num_processes)

    values = _sum_over_processes(accelerator, [sum(float(s[name]) for s in sums if name in s) for name in names])
    losses = {name: value / counts[name] for name, value in zip(names, values, strict=True) if counts[name]}
    if not all(map(math.isfinite, losses.values())):
        optimizer.zero_grad()
        listed = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        culprits = [
            name
            for batch, totals in zip(batches, sums, strict=True)
            if not all(bool(total.isfinite()) for total in totals.values())
            for name in batch["name"]
        ]
        culprits = gather_object(culprits) if accelerator.num_processes > 1 else culprits
        raise NonFiniteLoss(f"the loss is not finite at step {step}: {listed}; in a batch of {', '.join(culprits[:8])}")
    norm = None
    if clip is not None:
        norm = float(cast(Tensor, accelerator.clip_grad_norm_(model.parameters(), clip)))
    optimizer.step()
    optimizer.zero_grad()
    return StepResult({"loss": sum(losses.values()), **losses}, norm, int(samples), asked > 0)


def hold_all_but(parts: Parts, learn: tuple[str, ...] | None) -> None:
    """Let the branches named in `learn` (None: all) train, and hold the others: no gradient, no new statistics."""
    model = parts.accelerator.unwrap_model(parts.model)
    model.train()
    for branch in parts.branches:
        module = model.get_submodule(branch)
        learns = branch not in parts.held and (learn is None or branch in learn)
        module.requires_grad_(learns)
        if not learns:
            module.eval()
        elif branch in parts.fixed_norm:
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()


def seed_model(seed: int, step: int, process: int) -> None:
    """Make the network's own randomness a function of (seed, step, process), so that resuming needs no state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))


def to_device(batch: Batch, device: torch.device, *, channels_last: bool = True) -> Batch:
    """Return the batch with its tensors on `device`, images in channels_last memory unless told otherwise."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            if value.ndim == 4 and channels_last:
                value = value.contiguous(memory_format=torch.channels_last)
        moved[key] = value
    return moved  # pyright: ignore[reportReturnType]


class Evaluation(NamedTuple):
    """What was measured on one dataset. A metric whose label the data does not have is None."""

    davis: DavisMeasure | None
    pixels: ConfusionMatrix | None
    flow: FlowErrors | None

    def values(self) -> dict[str, float]:
        """Return the numbers a tracker wants: names and finite values."""
        found: dict[str, Any] = {}
        if self.davis is not None:
            found |= self.davis.compute()
        if self.pixels is not None:
            found |= {k: v for k, v in self.pixels.compute().items() if k in ("pixel_accuracy", "miou")}
        if self.flow is not None:
            found |= self.flow.compute()
        return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    examples: Examples,
    *,
    after_example: Callable[[int, Batch, Outputs], None] = lambda index, batch, outputs: None,
) -> Evaluation:
    """Measure the network on every example once, at the labels' own resolution; the same on any number of processes.

    Each process takes every n-th example, without padding and without a collective inside the loop; what they measured
    is merged at the end and is the same on all of them.

    Args:
        accelerator: of the run.
        model: wrapped or not; left in the mode it was in.
        examples: frames may be smaller than their labels; predictions are scaled to the labels.
        after_example: called on every process with its own examples: index, batch of one, outputs.
    """
    bare = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1 and not sharded(bare):
        for buffer in bare.buffers():  # without SyncBN each process has statistics of its own: measure the saved ones
            torch.distributed.broadcast(buffer, 0)
    modes = [(module, module.training) for module in bare.modules()]
    bare.eval()
    davis: DavisMeasure | None = None
    pixels: ConfusionMatrix | None = None
    flow: FlowErrors | None = None
    mine = range(accelerator.process_index, len(examples), accelerator.num_processes)
    for index in mine:
        sample = examples[index]
        batch = _of_one(sample)
        on_device = to_device(batch, accelerator.device)
        outputs = at_resolution(bare(on_device["frame"], on_device.get("next_frame")), batch)
        if "mask" in batch and "mask_logits" in outputs:
            classes = outputs["mask_logits"].shape[1]
            predicted = outputs["mask_logits"].argmax(1).to(torch.uint8).cpu().numpy()
            truth = batch["mask"].numpy()
            pixels = pixels or ConfusionMatrix(classes)
            pixels.update(predicted, truth)
            if classes == 2:
                davis = davis or DavisMeasure()
                known = truth[0] != IGNORE
                davis.update(sample["name"][0], (predicted[0] == 1) & known, (truth[0] == 1) & known)
        if "flow" in batch and "flow" in outputs:
            flow = flow or FlowErrors()
            flow.update(outputs["flow"].float().cpu(), batch["flow"], batch.get("flow_valid"), sample["name"][0])
        after_example(index, batch, outputs)
    if sharded(bare):  # every process must take part in every forward pass, also the one that has an example less
        missing = math.ceil(len(examples) / accelerator.num_processes) - len(mine)
        for _ in range(missing):
            first = to_device(_of_one(examples[0]), accelerator.device)
            bare(first["frame"], first.get("next_frame"))
    for module, mode in modes:
        module.training = mode
    return Evaluation(*(_merged(accelerator, metric) for metric in (davis, pixels, flow)))


def at_resolution(outputs: Outputs, batch: Batch) -> Outputs:
    """Return the predictions at the resolution of the batch's labels; flow vectors grow with their image."""
    scaled: Outputs = {}
    if "mask_logits" in outputs:
        logits = outputs["mask_logits"].float()
        size = tuple(batch["mask"].shape[-2:]) if "mask" in batch else tuple(logits.shape[-2:])
        scaled["mask_logits"] = _resized(logits, size)
    if "flow" in outputs:
        flow = outputs["flow"].float()
        size = tuple(batch["flow"].shape[-2:]) if "flow" in batch else tuple(flow.shape[-2:])
        factor = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]])
        scaled["flow"] = _resized(flow, size) * factor.view(1, 2, 1, 1)
    return scaled


def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _of_one(sample: Batch) -> Batch:
    batch: dict[str, Any] = {k: v[None] if isinstance(v, Tensor) else v for k, v in sample.items()}
    return batch  # pyright: ignore[reportReturnType]


def _merged(accelerator: Accelerator, metric: Any) -> Any:
    if accelerator.num_processes == 1:
        return metric
    present = [other for other in gather_object([metric]) if other is not None]
    for other in present[1:]:
        present[0].merge(other)
    return present[0] if present else None


def _sum_over_processes(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    if not values:
        return []
    stacked = torch.tensor(values, dtype=torch.float64)
    if accelerator.num_processes > 1:
        stacked = cast(Tensor, accelerator.reduce(stacked.to(accelerator.device), "sum"))
    return stacked.tolist()


def describe(values: Mapping[str, float]) -> str:
    """Return numbers as one readable line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
