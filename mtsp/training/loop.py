"""The training loop, on any number of processes.

One optimizer step takes one global batch of every data entry of its stage. Each process computes its part of the batch
in micro-batches. Every loss is a sum over the global batch, divided by the number of pixels or images that it counts
there, so the result does not depend on how the batch is divided. Gradients are synchronized once per step.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mtsp.batches import to_device
from mtsp.optim.schedule import ScheduleConfig, set_learning_rates
from mtsp.training.experiment import StageConfig, TrainConfig, stage_at
from mtsp.training.state import Position, Requests, StepResult, TrainState
from mtsp.types import LABELS, Batch, Outputs

LEAST_SCALE = 2.0**-10
"""Loss scale of fp16 at which a gradient that is not finite has another cause than the range of fp16."""


class NonFiniteStep(FloatingPointError):
    """Raised when a loss or the gradient is NaN or infinite. The message names step and samples; the weights have not
    been changed."""


def train(
    state: TrainState,
    position: Position,
    config: TrainConfig,
    schedule: ScheduleConfig,
    *,
    seed: int,
    open_stream: Callable[[str, int, int], Generator[Batch, None, None]],
    requests: Callable[[], Requests] = Requests,
    before_step: Callable[[], None] = lambda: None,
    after_step: Callable[[StepResult, dict[str, float]], None] = lambda result, rates: None,
) -> bool:
    """Train until `config.steps` optimizer steps are done, or a process asks to stop. Return True if one did.

    Args:
        state: network, optimizer and tasks.
        position: where to start; updated after every step.
        config: number of steps, stages, micro-batches in a step, and the largest gradient norm.
        schedule: returns the factor of the learning rates at each step.
        seed: with step and process, seeds the network's own randomness (dropout).
        open_stream: called with (data entry, global batch size, index of the first global batch); yields the
            micro-batches of this process.
        requests: returns what this process asks for; called late in every step. If one process asks to stop, all do
            after the step; if one asks to save, the result of the step says so on all.
        before_step: called before every step.
        after_step: called after every step with its losses and learning rates; may save or validate.

    Raises:
        NonFiniteStep: a loss or the gradient is NaN or infinite. Raised on all processes at once, before the weights
            change. With fp16, an infinite gradient instead lowers the loss scale, down to `LEAST_SCALE`, and the step
            is skipped.
        ValueError: a sample cannot be read.
    """
    streams: dict[str, Generator[Batch, None, None]] = {}
    stage: StageConfig | None = None
    with contextlib.ExitStack() as opened:  # ends the worker processes, even after an error
        while position.step < config.steps:
            previous, stage = stage, stage_at(config.stages, position.step)
            if stage is not previous:
                set_trainable(state, stage.learn)
            rates = set_learning_rates(state.optimizer, schedule.lr_factor(position.step, config.steps))
            micro_batches = []
            for name, size in stage.batch_size.items():
                key = f"{name}:{size}"
                if key not in streams:
                    stream = open_stream(name, size, position.batches.setdefault(key, 0))
                    streams[key] = opened.enter_context(contextlib.closing(stream))
                micro_batches += [next(streams[key]) for _ in range(config.accumulate)]
            seed_model(seed, position.step, state.accelerator.process_index)  # opening streams draws numbers
            before_step()
            result = optimizer_step(state, micro_batches, step=position.step + 1, clip=config.clip, requests=requests)
            position.step += 1
            for name, size in stage.batch_size.items():
                position.batches[f"{name}:{size}"] += 1
            after_step(result, rates)
            if result.requests.stop:
                return True
    return False


def optimizer_step(
    state: TrainState,
    micro_batches: Sequence[Batch],
    *,
    step: int,
    clip: float | None = None,
    requests: Callable[[], Requests] = Requests,
) -> StepResult:
    """Take one optimizer step on the micro-batches of all processes; return its losses over the global batch."""
    accelerator, model, optimizer = state.accelerator, state.model, state.optimizer
    batches = [to_device(batch, accelerator.device, channels_last=state.channels_last) for batch in micro_batches]
    names = state.tasks.names  # from the config, not the labels: the same on every process
    batch_counts = [batch.get("counts") or state.tasks.integer_counts(batch) for batch in micro_batches]
    local_counts = [sum(counts.get(name, 0) for counts in batch_counts) for name in names]
    samples = tuple(name for batch in batches for name in batch["name"])
    *global_counts, size = _sum_over_processes(accelerator, [*local_counts, len(samples)])
    counts = dict(zip(names, global_counts, strict=True))

    weights = {} if state.task_weights is None else state.task_weights.by_loss()
    sums: list[dict[str, Tensor]] = []
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            outputs: Outputs = model(batch["frame"], batch.get("next_frame"))
            totals = state.tasks.sums(outputs, batch)
            if not totals or batch_counts[index].keys() - totals.keys():
                raise ValueError(
                    f"{batch['name'][0]} has the labels {', '.join(sorted(batch.keys() & LABELS)) or 'none'} and the "
                    f"network returns {', '.join(outputs)}: some task in `tasks` cannot be learned from these"
                )
            means = {name: total / max(1.0, counts[name]) for name, total in totals.items()}
            loss = torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()
            sums.append({name: total.detach() for name, total in totals.items()})
            # DDP averages gradients over processes, but the loss is already divided by the global count: undo it.
            accelerator.backward(loss * accelerator.num_processes)

    asked = torch.tensor(requests(), dtype=torch.float64)  # late in the step
    zero = asked.new_zeros((), device=accelerator.device)
    local_sums = [sum((s[name].double() for s in sums if name in s), start=zero) for name in names]
    summed = torch.cat([torch.stack(local_sums), asked.to(accelerator.device)])
    if accelerator.num_processes > 1:
        summed = cast(Tensor, accelerator.reduce(summed, "sum"))
    gradient_norm = _gradient_norm(state, clip).double().reshape(1).to(summed.device)
    *values, stops, saves, norm = torch.cat([summed, gradient_norm]).tolist()  # the only wait for the GPU
    losses = {name: value / counts[name] for name, value in zip(names, values, strict=True) if counts[name]}
    listed = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    if not all(map(math.isfinite, losses.values())):
        culprits = [
            name
            for batch, totals in zip(batches, sums, strict=True)
            if not all(bool(total.isfinite()) for total in totals.values())
            for name in batch["name"]
        ]
        _refuse(state, f"the loss is not finite at step {step}: {listed}", culprits)
    scale = None if accelerator.scaler is None or math.isfinite(norm) else accelerator.scaler.get_scale()
    if not math.isfinite(norm) and (scale is None or scale <= LEAST_SCALE):
        _refuse(state, f"the gradient is not finite at step {step}, though the loss is: {listed}", samples)
    optimizer.step()
    optimizer.zero_grad()
    if state.task_weights is not None:
        state.task_weights.step(losses)
    clipped = None if clip is None else norm
    return StepResult(
        {"loss": sum(losses.values()), **losses}, clipped, int(size), samples, Requests(stops > 0, saves > 0)
    )


def _gradient_norm(state: TrainState, clip: float | None) -> Tensor:
    """Return the norm of the gradient over all weights; clip the gradient to the norm `clip`."""
    if clip is not None:
        norm: Any = state.accelerator.clip_grad_norm_(state.model.parameters(), clip)
    else:
        weights = (weight for group in state.optimizer.param_groups for weight in group["params"])
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return getattr(norm, "full_tensor", lambda: norm)()  # FSDP2 shards the gradient


def _refuse(state: TrainState, reason: str, culprits: Sequence[str]) -> NoReturn:
    """Raise NonFiniteStep with the names of samples of all processes, before the optimizer's step."""
    state.optimizer.zero_grad()
    names = gather_object(list(culprits)) if state.accelerator.num_processes > 1 else culprits
    raise NonFiniteStep(f"{reason}; in a batch of {', '.join(names[:8])}")


def set_trainable(state: TrainState, learn: tuple[str, ...] | None) -> None:
    """Train the branches named in `learn` (None: all); freeze all other branches and their batch-norm statistics."""
    model = state.accelerator.unwrap_model(state.model)
    model.train()
    for prefix in sorted((*state.branches, *state.modules)):  # a module comes after what is around it
        branch = prefix.partition(".")[0]
        learns = prefix not in state.frozen and (learn is None or branch in learn)
        module = model.get_submodule(prefix).train(learns).requires_grad_(learns)
        if branch in state.frozen_norm:
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()


def seed_model(seed: int, step: int, process: int) -> None:
    """Seed torch's random numbers by (seed, step, process), so that checkpoints need no generator state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))


def _sum_over_processes(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    if accelerator.num_processes == 1:
        return list(values)
    stacked = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return cast(Tensor, accelerator.reduce(stacked, "sum")).tolist()
