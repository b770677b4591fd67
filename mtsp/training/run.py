"""Run an experiment: build its parts in the order data flows through them, train, measure, and write the results."""

import json
import logging
import math
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mtsp.batches import collate
from mtsp.config import ConfigError
from mtsp.distributed.accelerator import make_accelerator
from mtsp.distributed.sharding import full_states, is_sharded
from mtsp.distributed.sync_batchnorm import synchronize
from mtsp.evaluation.evaluate import Evaluation, describe
from mtsp.files.atomic import write_atomically
from mtsp.files.lock import locked
from mtsp.files.progress import training_progress
from mtsp.files.tensors import write_tensors
from mtsp.optim import parameter_groups
from mtsp.regularizers import Anchored
from mtsp.tracking.tracker import Tracker
from mtsp.training.checks import require_classes, require_whole_images
from mtsp.training.ema import Ema
from mtsp.training.experiment import Experiment, as_yaml
from mtsp.training.loop import train
from mtsp.training.resume import checkpoint_to_resume, require_same_fisher, restore, save
from mtsp.training.signals import Interruption
from mtsp.training.state import Started, StepResult, TrainingRun, TrainState
from mtsp.training.stream import Shard, micro_batches
from mtsp.training.summary import announce
from mtsp.training.validate import due, measure
from mtsp.types import Batch

_LOG = logging.getLogger("mtsp")


def run(
    experiment: Experiment[Any, Any],
    run_dir: Path,
    *,
    start: Callable[[Experiment[Any, Any]], Started],
    resume: str | None = None,
) -> dict[str, dict[str, float]] | None:
    """Build the parts in the order the data flows through them, train, evaluate, and write everything to `run_dir`.

    Args:
        experiment: what to run.
        run_dir: where the results go; made if it is not there.
        start: builds the network and loads its pretrained weights; may download them.
        resume: None for a new run, `auto` to go on from the newest whole checkpoint if there is one, or the path of a
            checkpoint.

    Returns:
        What the final weights measure, by data entry; None if a signal stopped the run, saved by then.

    Raises:
        ValueError, OSError, FloatingPointError: what a person can mend, in one line.
    """
    accelerator = make_accelerator(experiment.train.precision)
    main = accelerator.is_main_process
    with locked(run_dir) if main else nullcontext(), Interruption() as interruption:
        found = checkpoint_to_resume(accelerator, run_dir, resume)
        with accelerator.main_process_first():  # one process downloads, the others find the file
            started = start(experiment)
        data = {name: section.build() for name, section in experiment.data.items() if _used(experiment, name)}
        require_classes(experiment, data)
        require_whole_images(experiment, {name: experiment.data[name] for name in experiment.evaluation.data})
        state = _prepare(experiment, accelerator, started)
        this = TrainingRun(experiment, run_dir, state, started, data, ema=_ema(experiment, state))
        if found is not None:
            restore(this, found)
        this.regularizer = _regularize(this)
        if found is not None:
            require_same_fisher(this, found)
        if main:
            write_atomically(run_dir / "experiment.yaml", as_yaml(experiment).encode())
            announce(this)
            tracked = found.state["tracker"] if found is not None else None
            this.tracker = Tracker.open(
                experiment.tracking, run_dir, experiment.model_dump(mode="json"), experiment.name, tracked
            )
        try:
            measured = _train(this, interruption)
            results = None if measured is None else _finish(this, measured)
        finally:
            this.tracker.close()
        accelerator.wait_for_everyone()  # without it, gloo aborts some runs while the group is torn down
        accelerator.end_training()
    return results


def _used(experiment: Experiment[Any, Any], name: str) -> bool:
    return name in experiment.evaluation.data or any(name in stage.batch_size for stage in experiment.train.stages)


def _prepare(experiment: Experiment[Any, Any], accelerator: Accelerator, started: Started) -> TrainState:
    model = started.model
    if experiment.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if accelerator.num_processes > 1:
        model = synchronize(model, accelerator.device)
    if experiment.train.compile:
        model.compile()
    learning_rates = experiment.learning_rates()
    optimizer = experiment.optimizer.build(parameter_groups(model, learning_rates))
    model, optimizer = accelerator.prepare(model, optimizer)
    branches = experiment.branches
    return TrainState(
        accelerator,
        model,
        optimizer,
        experiment.tasks,
        tuple(branches),
        frozen=tuple(name for name, branch in branches.items() if branch.freeze),
        frozen_norm=tuple(name for name, branch in branches.items() if branch.freeze_norm),
        channels_last=experiment.train.channels_last,
    )


def _regularize(run: TrainingRun) -> Anchored | None:
    """Attach the regularizer: after restoring, for which torch may step a sharded optimizer."""
    section = run.experiment.regularizer
    if section.name == "none":
        return None
    alpha, beta = run.experiment.strengths()
    pull = section.build(run.network, anchors=run.started.anchors, alpha=alpha, beta=beta)
    pull.attach(run.state.optimizer)
    return pull


def _ema(experiment: Experiment[Any, Any], state: TrainState) -> Ema | None:
    model = state.accelerator.unwrap_model(state.model)
    if experiment.train.ema is not None and is_sharded(model):
        raise ConfigError("train.ema: weights sharded by FSDP cannot be averaged; leave it out, or use DDP")
    return None if experiment.train.ema is None else Ema(model, experiment.train.ema)


def _train(run: TrainingRun, interruption: Interruption) -> dict[str, Evaluation] | None:
    """Train to the end; return what the last weights measure, or None if a signal stopped the run, saved by then."""
    plan, position = run.experiment.train, run.position
    if due(run):  # before the first step, or where a signal came between training and measuring
        measure(run)
    run.meter.restart()
    with training_progress(run.state.accelerator.is_main_process, plan.steps, position.step) as advance:
        stopped = train(
            run.state,
            position,
            steps=plan.steps,
            stages=plan.stages,
            schedule=run.experiment.schedule,
            open_stream=partial(_open_stream, run),
            seed=run.experiment.seed,
            accumulate=plan.accumulate,
            clip=plan.clip,
            stop=interruption.asked,
            before_step=partial(_before_step, run),
            after_step=partial(_after_step, run, advance),
        )
    if stopped and position.step < plan.steps:
        _LOG.warning("stopped and saved at step %d of %d; go on with --resume auto", position.step, plan.steps)
        return None
    if run.measured is None:  # resumed at its end: the curves have these numbers already
        run.tracker.close()
        run.tracker = Tracker.silent()
        measure(run)
    return run.measured


def _open_stream(run: TrainingRun, name: str, size: int, first: int) -> Generator[Batch, None, None]:
    """Return this process's micro-batches of a data entry, in global batches of `size`, from batch `first` on."""
    accelerator, plan = run.state.accelerator, run.experiment.train
    return micro_batches(
        run.data[name],
        batch_size=size,
        start=first,
        seed=(run.experiment.seed, zlib.crc32(name.encode())),
        shard=Shard(accelerator.process_index, accelerator.num_processes, plan.accumulate),
        collate=collate,
        workers=plan.workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _logged(run: TrainingRun, step: int) -> bool:
    """Whether the curves get a row at `step`."""
    return step % run.experiment.tracking.log_every == 0 or step == run.experiment.train.steps


def _before_step(run: TrainingRun) -> None:
    """Have pull and gradient measured in the steps that are logged, whether they follow a resumption or not."""
    if run.regularizer is not None and _logged(run, run.position.step + 1):
        run.regularizer.measure_next()


def _after_step(
    run: TrainingRun, advance: Callable[[int, str], None], result: StepResult, rates: Mapping[str, float]
) -> None:
    plan, step = run.experiment.train, run.position.step
    if run.ema is not None:
        run.ema.update(run.network)
    run.meter.add(result)
    advance(step, describe(result.losses))
    last = step == plan.steps
    if _logged(run, step):
        _log_training(run, rates)
    stopping = result.stop and not last  # save first: who asked may not wait for an evaluation
    if last:
        save(run)  # an evaluation that fails must not cost the run
    if due(run) and not stopping:
        measure(run)
        run.meter.restart()
    if step % plan.save_every == 0 or last or stopping:
        save(run)
        run.meter.restart()


def _log_training(run: TrainingRun, rates: Mapping[str, float]) -> None:
    values = {f"train/{name}": value for name, value in run.meter.take().items()}
    values |= {f"lr/{branch}": rate for branch, rate in rates.items()}
    if run.regularizer is not None:  # on every process: sharded weights are gathered for it
        values["penalty"] = run.regularizer.penalty()
        for branch, report in run.regularizer.report(run.state.branches).items():
            told = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in told if math.isfinite(value)}
    run.tracker.log(run.position.step, values)


def _finish(run: TrainingRun, measured: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    accelerator = run.state.accelerator
    results = {name: evaluation.values() for name, evaluation in measured.items()}
    with run.averaged():
        weights, _ = full_states(run.network, run.state.optimizer.optimizer)
        if accelerator.is_main_process:
            write_tensors(run.folder / "weights.safetensors", weights)
    if accelerator.is_main_process:
        write_atomically(run.folder / "results.json", json.dumps(results, indent=1).encode())
        _LOG.info("done: %d steps; weights, curves and figures are in %s", run.position.step, run.folder)
    return results
