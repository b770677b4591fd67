"""Run an experiment: build its parts in the order data flows through them, train, validate, and write the results."""

import json
import logging
import math
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtsp.anchors import fingerprint, relative_distances
from mtsp.config import ConfigError
from mtsp.cost.recompute import recompute_blocks
from mtsp.distributed.accelerator import make_accelerator, other_processes_may_fail
from mtsp.distributed.sharding import full_states, is_sharded
from mtsp.distributed.sync_batchnorm import synchronize
from mtsp.evaluation.classes import class_names
from mtsp.evaluation.evaluate import Evaluation, EvaluationStopped, describe
from mtsp.evaluation.forgetting import SourceConfig, SourceTask, shared_tensors
from mtsp.evaluation.scores import joined, plain, scores_of
from mtsp.files.atomic_file import write_atomically
from mtsp.files.lock import locked
from mtsp.files.progress import training_progress
from mtsp.files.tensors import write_tensors
from mtsp.regularizers import Regularizer
from mtsp.task_weights import TaskWeights
from mtsp.tracking.tracker import Tracker
from mtsp.training.checkpoint.resume import checkpoint_to_resume, require_same_fisher, restore
from mtsp.training.checkpoint.saver import Saver
from mtsp.training.checks import (
    align_classes,
    check_samples,
    missing_fisher,
    open_data,
    require_whole_images,
    try_sizes,
    with_classes,
)
from mtsp.training.ema import Ema
from mtsp.training.experiment import AnyExperiment, as_yaml, stage_at
from mtsp.training.loop import train
from mtsp.training.sample_stream import Shard, micro_batches
from mtsp.training.signals import StopSignals
from mtsp.training.state import PretrainedNetwork, StepResult, TrainingRun, TrainState, learned_classes
from mtsp.training.summary import print_summary
from mtsp.training.unused_weights import search_for_unused
from mtsp.training.validate import evaluator, validate, validation_due
from mtsp.types import Batch, Examples

_LOG = logging.getLogger("mtsp")


def run_experiment(
    experiment: AnyExperiment,
    run_dir: Path,
    *,
    build_network: Callable[[AnyExperiment, Sequence[str]], PretrainedNetwork],
    missing_weights: Callable[[AnyExperiment], Sequence[str]] = lambda experiment: (),
    resume: str | None = None,
) -> dict[str, dict[str, float]] | None:
    """Train an experiment from the start or from a checkpoint, and write all results to `run_dir`.

    Args:
        experiment: the resolved config.
        run_dir: folder for the results; created if it does not exist.
        build_network: takes the experiment and the names of its classes; returns the network with its pretrained
            weights, and may download them.
        missing_weights: returns a line for each file of weights that is missing or cannot be downloaded. These and all
            missing files of data are told at once, before anything is downloaded, built or decoded.
        resume: None starts a new run; `auto` continues from the newest complete checkpoint, or starts a new run if
            there is none; `must` is an error if there is none; any other string is the path of a checkpoint to
            continue from.

    Returns:
        Metrics of the final weights by data entry, or None if a signal stopped the run, which is then saved.

    Raises:
        ValueError, OSError, FloatingPointError: with a message that says how to fix it.
    """
    accelerator = make_accelerator(experiment.train.precision, experiment.train.timeout)
    main, lock = accelerator.is_main_process, locked(run_dir)
    with lock if main else nullcontext(), other_processes_may_fail(accelerator), StopSignals() as signals:
        saved = checkpoint_to_resume(accelerator, run_dir, resume)
        used = {*experiment.evaluation.data, *experiment.train.entries}
        source = experiment.evaluation.source
        missing = [*missing_weights(experiment), *missing_fisher(experiment)]
        missing += [] if source is None else missing_weights(experiment.source_experiment())
        opened = open_data(experiment, used | ({source.data} if source else set()), list(dict.fromkeys(missing)))
        experiment = with_classes(experiment, {name: opened[name] for name in opened if name in used})
        data = align_classes(experiment, {name: opened[name] for name in opened if name in used})
        with accelerator.main_process_first():  # one process downloads, the others find the file
            pretrained = build_network(experiment, learned_classes(data))
        require_whole_images(experiment, {name: experiment.data[name] for name in experiment.evaluation.data})
        try_sizes(experiment, pretrained.model, data)
        state = _prepare(experiment, accelerator, pretrained, data)
        run = TrainingRun(
            experiment, run_dir, state, pretrained, data, ema=_ema(experiment, state), stop=signals.received
        )
        if source is not None:
            run.source = _source_task(run, source, opened[source.data], build_network)
        run.fingerprints = check_samples(experiment, data)
        if saved is not None:
            restore(run, saved)
        run.regularizer = _attach_regularizer(run)
        if saved is not None:
            require_same_fisher(run, saved)
        if main:
            write_atomically(run_dir / "experiment.yaml", as_yaml(experiment).encode())
            print_summary(run)
            tracked = None if saved is None else saved.state["tracker"]
            values = experiment.model_dump(mode="json")
            again = tuple(f"{name}/" for name in experiment.evaluation.data) if validation_due(run) else ()
            run.tracker = Tracker.open(experiment.tracking, run_dir, values, experiment.name, tracked, again)
        try:
            validation = _train(run)
            results = None if validation is None else _write_results(run, validation)
        finally:
            run.tracker.close()
        accelerator.wait_for_everyone()  # without it, gloo aborts some runs while the group is torn down
        accelerator.end_training()
    return results


def _prepare(
    experiment: AnyExperiment, accelerator: Accelerator, pretrained: PretrainedNetwork, data: Mapping[str, Examples]
) -> TrainState:
    """Build the optimizer, and have Accelerate place and wrap network and optimizer."""
    model = pretrained.model
    if experiment.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if accelerator.num_processes > 1:
        search_for_unused(experiment, accelerator, model, data)
        model = synchronize(model, accelerator.device)
    if experiment.train.checkpoint_activations:
        _LOG.info("the activations of %d blocks are computed anew in the backward pass", recompute_blocks(model))
    if experiment.train.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, experiment.build_optimizer(model, pretrained.anchors))
    branches, learned = experiment.branches, experiment.train.task_weights
    return TrainState(
        accelerator,
        model,
        optimizer,
        experiment.tasks,
        tuple(branches),
        frozen=tuple(prefix for prefix, frozen in experiment.frozen.items() if frozen),
        modules=tuple(prefix for prefix in experiment.prefixes if "." in prefix),
        frozen_norm=tuple(name for name, branch in branches.items() if branch.freeze_norm),
        channels_last=experiment.train.channels_last,
        task_weights=None if learned is None else TaskWeights(experiment.tasks, learned),
    )


def _source_task(
    run: TrainingRun,
    source: SourceConfig[Any],
    examples: Examples,
    build_network: Callable[[AnyExperiment, Sequence[str]], PretrainedNetwork],
) -> SourceTask:
    """Build the network of the source task and measure it before fine-tuning."""
    experiment, accelerator = run.experiment, run.state.accelerator
    if is_sharded(run.network):
        raise ConfigError("evaluation.source: weights sharded by FSDP are not measured; leave it out, or use DDP")
    network = build_network(experiment.source_experiment(), ()).model.to(accelerator.device)
    if experiment.train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return SourceTask(
        source,
        network,
        examples,
        shared=shared_tensors(source, run.network, network, tuple(experiment.branches)),
        evaluate=evaluator(run),
        measure_start=experiment.evaluation.at_start,
    )


def _ema(experiment: AnyExperiment, state: TrainState) -> Ema | None:
    if experiment.train.ema is None:
        return None
    model = state.accelerator.unwrap_model(state.model)
    if is_sharded(model):
        raise ConfigError("train.ema: weights sharded by FSDP cannot be averaged; leave it out, or use DDP")
    return Ema(model, experiment.train.ema)


def _attach_regularizer(run: TrainingRun) -> Regularizer | None:
    """Attach the regularizer. Restore a checkpoint before: loading may make torch step a sharded optimizer."""
    regularizer = run.experiment.build_regularizer(run.network, run.pretrained.anchors)
    if regularizer is not None:
        regularizer.attach(run.state.optimizer)
    return regularizer


def _train(run: TrainingRun) -> dict[str, Evaluation] | None:
    """Train to the end; return the last validation, or None if a signal stopped the run, which is then saved."""
    config, position = run.experiment.train, run.position
    with Saver(run) as saver:
        try:
            if validation_due(run):  # before the first step, or if the run stopped between a step and its validation
                validate(run)
            run.meter.restart()
            with training_progress(run.state.accelerator.is_main_process, config.steps, position.step) as advance:
                stopped = train(
                    run.state,
                    position,
                    steps=config.steps,
                    stages=config.stages,
                    schedule=run.experiment.schedule,
                    open_stream=partial(_open_stream, run),
                    seed=run.experiment.seed,
                    accumulate=config.accumulate,
                    clip=config.clip,
                    stop=run.stop,
                    save=saver.asks,
                    before_step=partial(_before_step, run),
                    after_step=partial(_after_step, run, saver, advance),
                )
            if run.validation is None and not stopped:  # resumed at its last step: the curves already have it
                run.tracker.close()
                run.tracker = Tracker.silent()
                validate(run)
        except EvaluationStopped:
            stopped = True
            saver.save()
    if not stopped:
        return run.validation
    _LOG.warning("stopped and saved at step %d of %d; continue with --resume auto", position.step, config.steps)
    return None


def _open_stream(run: TrainingRun, name: str, size: int, first: int) -> Generator[Batch, None, None]:
    """Yield this process's micro-batches of a data entry, in global batches of `size`, starting at batch `first`."""
    accelerator, config = run.state.accelerator, run.experiment.train
    return micro_batches(
        run.data[name],
        batch_size=size,
        start=first,
        seed=(run.experiment.seed, zlib.crc32(name.encode())),
        shard=Shard(accelerator.process_index, accelerator.num_processes, config.accumulate),
        collate=run.experiment.tasks.collate,
        workers=config.worker_count(),
        pin_memory=accelerator.device.type == "cuda",
        timeout=config.timeout,
    )


def _is_logged(run: TrainingRun, step: int) -> bool:
    return step % run.experiment.tracking.log_every == 0 or step == run.experiment.train.steps


def _before_step(run: TrainingRun) -> None:
    """Measure pull and gradient only in logged steps, so that a resumed run measures them in the same steps."""
    if run.regularizer is not None and _is_logged(run, run.position.step + 1):
        run.regularizer.measure_next()


def _after_step(
    run: TrainingRun,
    saver: Saver,
    advance: Callable[[int, str], None],
    result: StepResult,
    rates: Mapping[str, float],
) -> None:
    """Update the averages, and log, save and validate in steps where these are due."""
    config, step = run.experiment.train, run.position.step
    if run.ema is not None:
        run.ema.update(run.network)
    run.meter.add(result)
    advance(step, describe(result.losses))
    if _is_logged(run, step):
        _log_training(run, rates)
    _watch_loss(run, saver, result)
    saver.check()
    validates = validation_due(run) and not result.stop  # after a signal there may be no time for it
    asked = result.stop or result.save or step == config.steps
    if asked or saver.due() or (validates and config.keep_best is not None):
        saver.save()  # before validation, so that neither an error in it nor its end loses steps
        run.meter.restart()
    if validates:
        validate(run)
        run.meter.restart()


def _watch_loss(run: TrainingRun, saver: Saver, result: StepResult) -> None:
    """Warn if the loss is suddenly many times larger, and keep the checkpoint before that."""
    step, stages, loss = run.position.step, run.experiment.train.stages, result.losses["loss"]
    before = run.spikes.add(str(stages.index(stage_at(stages, step - 1))), loss)
    if before is None:
        return
    names = gather_object(list(result.names)) if run.state.accelerator.num_processes > 1 else result.names
    kept = saver.keep_before(step)
    checkpoint = "there is no checkpoint before" if kept is None else f"the checkpoint of step {kept} is kept"
    samples = ", ".join(names[:8])
    _LOG.warning("LOSS SPIKE at step %d: %.4g, before at most %.4g; %s; %s", step, loss, before, samples, checkpoint)


def _log_training(run: TrainingRun, rates: Mapping[str, float]) -> None:
    values = {f"train/{name}": value for name, value in run.meter.take().items()}
    values |= {f"lr/{branch}": rate for branch, rate in rates.items()}
    if run.state.task_weights is not None:
        values |= {f"task_weight/{task}": weight for task, weight in run.state.task_weights.by_task().items()}
    if run.regularizer is not None:  # on every process, because this gathers sharded weights
        values["penalty"] = run.regularizer.penalty()
        for branch, report in run.regularizer.report(run.state.branches).items():
            numbers = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in numbers if math.isfinite(value)}
    run.tracker.log(run.position.step, values)


def _write_results(run: TrainingRun, validation: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Write the final weights, their metrics, and distance and pull of each layer; return the metrics."""
    accelerator = run.state.accelerator
    results = {name: evaluation.values() for name, evaluation in validation.items()}
    details = {
        name: joined(scores_of(evaluation.metrics, class_names(run.data[name]) if name in run.data else ()))
        for name, evaluation in validation.items()
    }
    ends = {"distance": dict[str, float](), "pull_to_gradient": _pulls(run)}
    with run.ema_weights():
        weights, _ = full_states(run.network, run.state.optimizer.optimizer)
        if accelerator.is_main_process:
            anchors = run.pretrained.anchors
            notes = {"anchor": fingerprint(anchors)} if anchors else {}
            notes |= {"classes": json.dumps(run.classes)} if run.classes else {}
            write_tensors(run.folder / "weights.safetensors", weights, notes)
            ends["distance"] = relative_distances(weights, anchors)
            layers = {name: {key: end[name] for key, end in ends.items() if name in end} for name in weights}
            layers = {name: values for name, values in layers.items() if values}
            write_atomically(run.folder / "layers.json", json.dumps(layers, indent=1).encode())
            write_atomically(run.folder / "evaluation.json", json.dumps({"entries": plain(details)}, indent=1).encode())
    if accelerator.is_main_process:
        write_atomically(run.folder / "results.json", json.dumps(results, indent=1).encode())
        _LOG.info("done: %d steps; weights, curves and figures are in %s", run.position.step, run.folder)
    return results


def _pulls(run: TrainingRun) -> dict[str, float]:
    """Return the last measured ratio of pull and gradient by weight. On every process: weights may be sharded."""
    if run.regularizer is None:
        return {}
    reports = run.regularizer.report(run.regularizer.targets)
    return {name: one.pull_to_gradient for name, one in reports.items() if math.isfinite(one.pull_to_gradient)}
