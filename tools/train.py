"""Train: `accelerate launch tools/train.py --config davis_segflow.yaml [key=value ...]`.

The run's folder receives the resolved experiment (`experiment.yaml`), the curves (`metrics.jsonl`), pictures,
checkpoints, the weights at the end (`weights.safetensors`) and what they measure (`results.json`).
"""

import argparse
import json
import logging
import os
import sys
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mtsp import checkpoint, loading
from mtsp.anchors import fingerprint
from mtsp.averaging import Average
from mtsp.config import ConfigError
from mtsp.engine import Parts, Position, StepResult, train
from mtsp.evaluation import Evaluation, describe, evaluate
from mtsp.experiment import check_resumable
from mtsp.optim import parameter_groups
from mtsp.regularizers import Anchored
from mtsp.synchronized import synchronize
from mtsp.tracking import Tracker
from mtsp.types import Batch, Examples, Outputs
from mtsp.visualize import panel
from tools.parts import (
    AnyExperiment,
    Started,
    accelerator_of,
    as_yaml,
    read_experiment,
    require_classes,
    require_whole_pictures,
    run_or_say_why,
    start,
)
from tools.running import Interruption, Meter, locked, progress_bar

_LOG = logging.getLogger("mtsp")
_HEADLINES = frozenset({"J_mean", "F_mean", "iou", "miou", "pixel_accuracy", "epe", "fl_all", "top1", "top5"})


@dataclass
class Run:
    """A run under way."""

    experiment: AnyExperiment
    folder: Path
    parts: Parts
    started: Started
    data: Mapping[str, Examples]
    regularizer: Anchored | None = None
    average: Average | None = None
    tracker: Tracker = field(default_factory=Tracker.silent)
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    measured: dict[str, Evaluation] | None = None
    """What was measured last."""
    measured_at: int = -1
    """The step of that."""


def run(experiment: AnyExperiment, run_dir: Path, resume: str | None = None) -> dict[str, dict[str, float]] | None:
    """Build the parts in the order the data flows through them, train, evaluate, and write everything to `run_dir`.

    Args:
        experiment: what to run.
        run_dir: where the results go; made if it is not there.
        resume: None for a new run, `auto` to go on from the newest whole checkpoint if there is one, or the path of a
            checkpoint.

    Returns:
        What the final weights measure, by data entry; None if a signal stopped the run, saved by then.

    Raises:
        ValueError, OSError, FloatingPointError: what a person can mend, in one line.
    """
    accelerator = accelerator_of(experiment.train.precision)
    main = accelerator.is_main_process
    with locked(run_dir) if main else nullcontext(), Interruption() as interruption:
        found = _checkpoint_to_resume(accelerator, run_dir, resume)
        with accelerator.main_process_first():  # one process downloads, the others find the file
            started = start(experiment)
        data = {name: section.build() for name, section in experiment.data.items() if _used(experiment, name)}
        require_classes(experiment, data)
        require_whole_pictures(experiment, {name: experiment.data[name] for name in experiment.evaluation.data})
        parts = _prepare(experiment, accelerator, started)
        this = Run(experiment, run_dir, parts, started, data, average=_average(experiment, parts))
        if found is not None:
            _restore(this, found)
        this.regularizer = _regularize(this)
        if main:
            checkpoint.write_atomically(run_dir / "experiment.yaml", as_yaml(experiment).encode())
            _describe(this)
            state = found.state["tracker"] if found is not None else None
            this.tracker = Tracker.open(
                experiment.tracking, run_dir, experiment.model_dump(mode="json"), experiment.name, state
            )
        try:
            measured = _train(this, interruption)
            results = None if measured is None else _finish(this, measured)
        finally:
            this.tracker.close()
        accelerator.wait_for_everyone()  # without it, gloo aborts some runs while the group is torn down
        accelerator.end_training()
    return results


def _used(experiment: AnyExperiment, name: str) -> bool:
    return name in experiment.evaluation.data or any(name in stage.batches for stage in experiment.train.stages)


def _prepare(experiment: AnyExperiment, accelerator: Accelerator, started: Started) -> Parts:
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
    return Parts(
        accelerator,
        model,
        optimizer,
        experiment.tasks,
        tuple(branches),
        held=tuple(name for name, branch in branches.items() if branch.freeze),
        fixed_norm=tuple(name for name, branch in branches.items() if branch.freeze_norm),
        channels_last=experiment.train.channels_last,
    )


def _regularize(run: Run) -> Anchored | None:
    """Attach the regularizer: after restoring, for which torch may step a sharded optimizer."""
    section = run.experiment.regularizer
    if section.name == "none":
        return None
    alpha, beta = run.experiment.strengths()
    model = run.parts.accelerator.unwrap_model(run.parts.model)
    pull = section.build(model, anchors=run.started.anchors, alpha=alpha, beta=beta)
    pull.attach(run.parts.optimizer)
    return pull


def _average(experiment: AnyExperiment, parts: Parts) -> Average | None:
    model = parts.accelerator.unwrap_model(parts.model)
    if experiment.train.average is not None and checkpoint.sharded(model):
        raise ConfigError("train.average: weights sharded by FSDP cannot be averaged; leave it out, or use DDP")
    return None if experiment.train.average is None else Average(model, experiment.train.average)


def _averaged(run: Run) -> AbstractContextManager[None]:
    """Return a context in which the network has its averaged weights, if there are any."""
    model = run.parts.accelerator.unwrap_model(run.parts.model)
    return nullcontext() if run.average is None else run.average.swapped(model)


def _checkpoint_to_resume(accelerator: Accelerator, run_dir: Path, resume: str | None) -> checkpoint.Checkpoint | None:
    folder = run_dir / "checkpoints"
    if resume is None:
        if checkpoint.checkpoints(folder) or (run_dir / "results.json").exists():
            raise ConfigError(f"{run_dir} holds a run already; go on with --resume auto, or choose another --run-dir")
        return None
    found = checkpoint.newest(folder) if resume == "auto" else checkpoint.load(Path(resume))
    if found is None and checkpoint.checkpoints(folder):
        raise checkpoint.CheckpointError(f"none of the checkpoints in {folder} is whole; remove them to start anew")
    steps = [found.state["step"] if found is not None else 0]
    if accelerator.num_processes > 1 and len(set(steps := gather_object(steps))) > 1:
        raise checkpoint.CheckpointError(
            f"the processes would go on from different steps, {steps}: {folder} must be on a disk that all nodes share"
        )
    return found


def _restore(run: Run, found: checkpoint.Checkpoint) -> None:
    state, accelerator = found.state, run.parts.accelerator
    for line in check_resumable(run.experiment.model_dump(mode="json"), state["experiment"]):
        _LOG.info("changed since the checkpoint: %s", line)
    if state["processes"] != accelerator.num_processes:
        _LOG.info("processes: now %d, was %d; dropout will differ", accelerator.num_processes, state["processes"])
    if state["anchors"] != fingerprint(run.started.anchors):
        raise checkpoint.CheckpointError(
            f"{found.path} was trained towards other anchors than the branches' `weights` give now; restore those files"
        )
    model = accelerator.unwrap_model(run.parts.model)
    if state["sharded"] != checkpoint.sharded(model):
        here, there = ("with", "without") if checkpoint.sharded(model) else ("without", "with")
        raise checkpoint.CheckpointError(f"{found.path} was saved {there} FSDP and cannot be resumed {here} it")
    average = found.optimizer.pop("average", None)
    try:
        checkpoint.set_states(model, run.parts.optimizer.optimizer, found)
        if run.average is not None:
            run.average.load_state_dict(average)
    except (RuntimeError, ValueError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{found.path} is of another network: {str(error).splitlines()[0]}") from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if state["step"] > run.experiment.train.steps:
        raise ConfigError(
            f"{found.path} is beyond train.steps={run.experiment.train.steps}; give more, or a new --run-dir"
        )
    run.position = Position(state["step"], state["batches"])
    run.meter.values = state["meter"]
    run.measured_at = state["measured_at"]


def _save(run: Run) -> None:
    """Save from the main process; the others wait for it, so that none is ahead of what is on the disk."""
    accelerator = run.parts.accelerator
    bare = accelerator.unwrap_model(run.parts.model)
    model, optimizer = checkpoint.states(bare, run.parts.optimizer.optimizer)
    if run.average is not None:
        optimizer = {**optimizer, "average": run.average.state_dict()}
    if accelerator.is_main_process:
        state = {
            "step": run.position.step,
            "batches": run.position.batches,
            "experiment": run.experiment.model_dump(mode="json"),
            "anchors": fingerprint(run.started.anchors),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "processes": accelerator.num_processes,
            "sharded": checkpoint.sharded(bare),
            "meter": run.meter.values,
            "measured_at": run.measured_at,
            "tracker": run.tracker.state(),
        }
        folder = run.folder / "checkpoints"
        checkpoint.save(folder, run.position.step, model, optimizer, state, run.experiment.train.keep)
    accelerator.wait_for_everyone()


def _train(run: Run, interruption: Interruption) -> dict[str, Evaluation] | None:
    """Train to the end; return what the last weights measure, or None if a signal stopped the run, saved by then."""
    accelerator, plan, position, meter = run.parts.accelerator, run.experiment.train, run.position, run.meter
    share = loading.Slice(accelerator.process_index, accelerator.num_processes, plan.accumulate)

    def open_stream(name: str, size: int, first: int) -> Generator[Batch, None, None]:
        return loading.micro_batches(
            run.data[name],
            batch_size=size,
            start=first,
            seed=(run.experiment.seed, zlib.crc32(name.encode())),
            part=share,
            collate=loading.collate,
            workers=plan.workers,
            pin_memory=accelerator.device.type == "cuda",
        )

    def due() -> bool:
        every = run.experiment.evaluation.every
        at_start = position.step == 0 and run.experiment.evaluation.at_start
        regular = position.step > 0 and every is not None and position.step % every == 0
        return run.measured_at < position.step and (at_start or regular or position.step == plan.steps)

    if due():  # before the first step, or where a signal came between training and measuring
        evaluate_all(run)
    meter.restart()
    bare = accelerator.unwrap_model(run.parts.model)
    with progress_bar(accelerator.is_main_process, plan.steps, position.step) as advance:

        def after_step(result: StepResult, rates: Mapping[str, float]) -> None:
            if run.average is not None:
                run.average.update(bare)
            meter.add(result)
            advance(position.step, result.losses)
            last = position.step == plan.steps
            if position.step % run.experiment.tracking.log_every == 0 or last:
                _log_training(run, rates)
            stopping = result.stop and not last  # save first: who asked may not wait for an evaluation
            if last:
                _save(run)  # an evaluation that fails must not cost the run
            if due() and not stopping:
                evaluate_all(run)
                meter.restart()
            if position.step % plan.save_every == 0 or last or stopping:
                _save(run)
                meter.restart()

        stopped = train(
            run.parts,
            position,
            steps=plan.steps,
            stages=plan.stages,
            schedule=run.experiment.schedule,
            open_stream=open_stream,
            seed=run.experiment.seed,
            accumulate=plan.accumulate,
            clip=plan.clip,
            stop=interruption.asked,
            after_step=after_step,
        )
    if stopped and position.step < plan.steps:
        _LOG.warning("stopped and saved at step %d of %d; go on with --resume auto", position.step, plan.steps)
        return None
    if run.measured is None:  # resumed at its end: the curves have these numbers already
        run.tracker.close()
        run.tracker = Tracker.silent()
        evaluate_all(run)
    return run.measured


def _log_training(run: Run, rates: Mapping[str, float]) -> None:
    values = {f"train/{name}": value for name, value in run.meter.take().items()}
    values |= {f"lr/{branch}": rate for branch, rate in rates.items()}
    if run.regularizer is not None:  # on every process: sharded weights are gathered for it
        values["penalty"] = run.regularizer.penalty()
        values |= {f"distance/{k}": v for k, v in run.regularizer.distances(run.parts.branches).items()}
    run.tracker.log(run.position.step, values)


def evaluate_all(run: Run) -> None:
    """Measure the network on every entry of `evaluation.data`; log the numbers and a few pictures."""
    accelerator, step = run.parts.accelerator, run.position.step
    run.measured, run.measured_at = {}, step
    for name in run.experiment.evaluation.data:
        examples = run.data[name]
        count = min(run.experiment.tracking.images, len(examples))
        wanted = [round((i + 0.5) * len(examples) / count - 0.5) for i in range(count)]
        shown: set[int] = {index - index % accelerator.num_processes for index in wanted}
        pictures: dict[str, np.ndarray] = {}
        with _averaged(run):
            run.measured[name] = evaluate(
                accelerator,
                run.parts.model,
                examples,
                views=run.experiment.evaluation.views.build(),
                batch_size=run.experiment.evaluation.batch,
                workers=run.experiment.train.workers,
                channels_last=run.experiment.train.channels_last,
                after_example=partial(_draw, pictures, shown, getattr(examples, "classes", ())),
            )
        values = {f"{name}/{k}": v for k, v in run.measured[name].values().items()}
        run.tracker.log(step, values)
        run.tracker.pictures(step, {f"{name}/{k}": v for k, v in pictures.items()})
        _LOG.info("step %d  %s", step, describe({k: v for k, v in values.items() if _headline(k)}))


def _draw(
    pictures: dict[str, np.ndarray],
    shown: set[int],
    classes: Sequence[str],
    index: int,
    batch: Batch,
    outputs: Outputs,
) -> None:
    """Add a picture of example `index`, if it is one of those that are shown."""
    if index in shown:
        nothing = 0 if len(classes) <= 2 or "background" in classes[0].lower() else None
        pictures[f"{index:05d}"] = panel(batch, outputs, background=nothing, classes=classes)


def _headline(name: str) -> bool:
    return name.rpartition("/")[2] in _HEADLINES


def _finish(run: Run, measured: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    accelerator = run.parts.accelerator
    results = {name: evaluation.values() for name, evaluation in measured.items()}
    with _averaged(run):
        weights, _ = checkpoint.states(accelerator.unwrap_model(run.parts.model), run.parts.optimizer.optimizer)
        if accelerator.is_main_process:
            checkpoint.export(run.folder / "weights.safetensors", weights)
    if accelerator.is_main_process:
        checkpoint.write_atomically(run.folder / "results.json", json.dumps(results, indent=1).encode())
        _LOG.info("done: %d steps; weights, curves and pictures are in %s", run.position.step, run.folder)
    return results


def _describe(run: Run) -> None:
    """Print which weights are anchored to what, which are new, which are free, and how strong the pulls are."""
    experiment, parts, started, regularizer = run.experiment, run.parts, run.started, run.regularizer
    table = Table(
        title=f"{experiment.name}: what pulls which weights ({experiment.regularizer.name})",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("branch", "pretrained", "new", "free", "alpha", "beta", "lr", "steps to 1/e"):
        table.add_column(column, justify="left" if column == "branch" else "right", no_wrap=True)
    alpha, beta = experiment.strengths()
    model = parts.accelerator.unwrap_model(parts.model)
    pulls = regularizer.pulls if regularizer is not None else {}
    for branch, lr in experiment.learning_rates().items():
        sizes = {"shared": 0, "new": 0, "free": 0}
        for name, weight in model.named_parameters():
            if name.startswith(f"{branch}."):
                pull = pulls.get(name)
                sizes["free" if pull is None else "shared" if pull.shared else "new"] += weight.numel()
        tau = regularizer.time_constant(branch) if regularizer is not None else None
        held = experiment.branches[branch].freeze
        table.add_row(
            branch + (" (frozen)" if held else ""),
            *(f"{size / 1e6:.2f} M" for size in sizes.values()),
            *(f"{strength[branch]:g}" if strength else "-" for strength in (alpha, beta)),
            f"{lr:g}",
            "-" if tau is None else f"{tau:,.0f}",
        )
    Console(stderr=True).print(table)
    for branch in parts.branches:
        loaded = started.loaded.get(branch)
        _LOG.info("%s starts from %s", branch, loaded.description if loaded else "random weights, all of them new")
        if loaded and loaded.left_out:
            _LOG.info("%s left out %d tensors of its source: %s", branch, len(loaded.left_out), loaded.left_out[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--config", help="a YAML file, looked for in configs/ if no folder is named")
    parser.add_argument("--run-dir", type=Path, help="where the results go (default: runs/NAME)")
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the newest checkpoint, or from this one")
    parser.add_argument("--print-config", action="store_true", help="show the resolved experiment and stop")
    parser.add_argument("--print-schema", action="store_true", help="show the JSON schema of configs and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in train.steps=100")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if int(os.environ.get("RANK", "0")) == 0:
        _LOG.setLevel(logging.INFO)
    if options.print_schema:
        print(json.dumps(AnyExperiment.model_json_schema(), indent=1))
        return 0
    if options.config is None:
        parser.error("--config is missing: a YAML file, as in --config davis_segflow.yaml")
    experiment = read_experiment(options.config, options.overrides)
    if options.print_config:
        print(as_yaml(experiment), end="")
        return 0
    run(experiment, options.run_dir or Path("runs") / experiment.name, options.resume)
    return 0


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
