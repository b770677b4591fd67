"""Train: `accelerate launch tools/train.py --config davis_segflow.yaml [key=value ...]`.

The run's folder receives the resolved experiment (`experiment.yaml`), the curves (`metrics.jsonl`), pictures,
checkpoints, the weights at the end (`weights.safetensors`) and what they measure (`results.json`).
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn

from mtsp import checkpoint, loading
from mtsp.anchors import fingerprint
from mtsp.config import ConfigError
from mtsp.engine import Evaluation, Parts, StepResult, describe, evaluate, train
from mtsp.engine import Progress as Done
from mtsp.experiment import check_resumable
from mtsp.optim import parameter_groups
from mtsp.regularizers import L2SP, time_constant
from mtsp.tracking import Tracker
from mtsp.types import Batch, Examples
from mtsp.visualize import panels
from tools.parts import AnyExperiment, Started, accelerator_of, as_yaml, read_experiment, run_or_say_why, start
from tools.running import Interruption, Meter, locked, progress_bar

_LOG = logging.getLogger("mtsp")


def run(experiment: AnyExperiment, run_dir: Path, resume: str | None = None) -> dict[str, dict[str, float]]:
    """Build the parts in the order the data flows through them, train, evaluate, and write everything to `run_dir`.

    Args:
        experiment: what to run.
        run_dir: where the results go; made if it is not there.
        resume: None for a new run, `auto` to go on from the newest whole checkpoint if there is one, or the path of a
            checkpoint.

    Returns:
        What the final weights measure, by data entry; empty if the run was stopped.

    Raises:
        ValueError, OSError, FloatingPointError: what a person can mend, in one line.
    """
    accelerator = accelerator_of(experiment.train.precision)
    main = accelerator.is_main_process
    with locked(run_dir) if main else nullcontext(), Interruption() as interruption:
        found = _checkpoint_to_resume(run_dir, resume)
        with accelerator.main_process_first():  # one process downloads, the others find the file
            started = start(experiment)
        data = {name: section.build() for name, section in experiment.data.items() if _used(experiment, name)}
        parts = _prepare(experiment, accelerator, started)
        regularizer = _regularize(experiment, parts, started)
        done, meter = Done(), Meter()
        if found is not None:
            done = _restore(found, experiment, parts, started)
            meter.values = found.state["meter"]
        tracker = Tracker.silent()
        if main:
            run_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.write_atomically(run_dir / "experiment.yaml", as_yaml(experiment).encode())
            _describe(experiment, parts, started, regularizer)
            state = found.state["tracker"] if found is not None else None
            tracker = Tracker.open(
                experiment.tracking, run_dir, experiment.model_dump(mode="json"), experiment.name, state
            )
        try:
            measured = _train(
                experiment, parts, data, regularizer, started, done, meter, tracker, run_dir, interruption
            )
            results = _finish(parts, measured, run_dir, done) if measured is not None else {}
        finally:
            tracker.close()
        accelerator.wait_for_everyone()  # without it, gloo aborts some runs while the group is torn down
        accelerator.end_training()
    return results


def _used(experiment: AnyExperiment, name: str) -> bool:
    return name in experiment.evaluation.data or any(name in stage.batches for stage in experiment.train.stages)


def _prepare(experiment: AnyExperiment, accelerator: Accelerator, started: Started) -> Parts:
    model = started.model
    if experiment.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
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


def _regularize(experiment: AnyExperiment, parts: Parts, started: Started) -> L2SP | None:
    if experiment.regularizer.name == "none":
        return None
    alpha, beta = experiment.strengths()
    regularizer = L2SP(
        parts.accelerator.unwrap_model(parts.model),
        anchors=started.anchors,
        alpha=alpha,
        beta=beta,
        placement=experiment.regularizer.placement,
        zero=experiment.regularizer.name == "l2",
    )
    regularizer.attach(parts.optimizer)
    return regularizer


def _checkpoint_to_resume(run_dir: Path, resume: str | None) -> checkpoint.Checkpoint | None:
    folder = run_dir / "checkpoints"
    if resume is None:
        if checkpoint.checkpoints(folder) or (run_dir / "results.json").exists():
            raise ConfigError(f"{run_dir} holds a run already; go on with --resume auto, or choose another --run-dir")
        return None
    if resume != "auto":
        return checkpoint.load(Path(resume))
    found = checkpoint.newest(folder)
    if found is None and checkpoint.checkpoints(folder):
        raise checkpoint.CheckpointError(f"none of the checkpoints in {folder} is whole; remove them to start anew")
    return found


def _restore(found: checkpoint.Checkpoint, experiment: AnyExperiment, parts: Parts, started: Started) -> Done:
    state = found.state
    for line in check_resumable(experiment.model_dump(mode="json"), state["experiment"]):
        _LOG.info("changed since the checkpoint: %s", line)
    if state["anchors"] != fingerprint(started.anchors):
        raise checkpoint.CheckpointError(
            f"{found.path} was trained towards other anchors than the branches' `weights` give now; restore those files"
        )
    try:
        checkpoint.set_states(parts.accelerator.unwrap_model(parts.model), parts.optimizer.optimizer, found)
    except (RuntimeError, ValueError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{found.path} is of another network: {str(error).splitlines()[0]}") from error
    if parts.accelerator.scaler is not None and state["scaler"]:
        parts.accelerator.scaler.load_state_dict(state["scaler"])
    return Done(state["step"], state["batches"])


def _save(
    experiment: AnyExperiment,
    parts: Parts,
    started: Started,
    done: Done,
    meter: Meter,
    tracker: Tracker,
    run_dir: Path,
) -> None:
    """Save from the main process; the others wait for it, so that none is ahead of what is on the disk."""
    accelerator = parts.accelerator
    model, optimizer = checkpoint.states(accelerator.unwrap_model(parts.model), parts.optimizer.optimizer)
    if accelerator.is_main_process:
        state = {
            "step": done.step,
            "batches": done.batches,
            "experiment": experiment.model_dump(mode="json"),
            "anchors": fingerprint(started.anchors),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "processes": accelerator.num_processes,
            "meter": meter.values,
            "tracker": tracker.state(),
        }
        checkpoint.save(run_dir / "checkpoints", done.step, model, optimizer, state, experiment.train.keep)
    accelerator.wait_for_everyone()


def _train(
    experiment: AnyExperiment,
    parts: Parts,
    data: Mapping[str, Examples],
    regularizer: L2SP | None,
    started: Started,
    done: Done,
    meter: Meter,
    tracker: Tracker,
    run_dir: Path,
    interruption: Interruption,
) -> dict[str, Evaluation] | None:
    """Train to the end; return what the last weights measure, or None if a signal stopped the run, saved by then."""
    accelerator, plan, tracking = parts.accelerator, experiment.train, experiment.tracking
    slice_ = loading.Slice(accelerator.process_index, accelerator.num_processes, plan.accumulate)

    def open_stream(name: str, size: int, first: int) -> Generator[Batch, None, None]:
        return loading.micro_batches(
            data[name],
            batch_size=size,
            start=first,
            seed=experiment.seed,
            part=slice_,
            collate=loading.collate,
            workers=plan.workers,
            pin_memory=accelerator.device.type == "cuda",
        )

    def measure() -> dict[str, Evaluation]:
        return evaluate_all(experiment, parts, data, tracker, done.step)

    if done.step == 0 and experiment.evaluation.at_start:
        measure()
    measured: dict[str, Evaluation] | None = None
    meter.restart()
    with progress_bar(accelerator.is_main_process, plan.steps, done.step) as advance:

        def after_step(result: StepResult, rates: Mapping[str, float]) -> None:
            nonlocal measured
            meter.add(result)
            advance(done.step, result.losses)
            if done.step % tracking.log_every == 0 or done.step == plan.steps:
                values = {f"train/{k}": v for k, v in meter.take().items()}
                values |= {f"lr/{k}": v for k, v in rates.items()}
                if regularizer is not None:
                    values |= {"penalty": regularizer.penalty()}
                    values |= {f"distance/{k}": v for k, v in regularizer.distances(parts.branches).items()}
                tracker.log(done.step, values)
                _LOG.debug("step %d  %s", done.step, describe(values))
            last = done.step == plan.steps
            every = experiment.evaluation.every
            if last or (every is not None and done.step % every == 0):
                measured = measure()
                meter.restart()
            if done.step % plan.save_every == 0 or last or result.stop:
                _save(experiment, parts, started, done, meter, tracker, run_dir)
                meter.restart()

        stopped = train(
            parts,
            done,
            steps=plan.steps,
            stages=plan.stages,
            schedule=experiment.schedule,
            open_stream=open_stream,
            seed=experiment.seed,
            accumulate=plan.accumulate,
            clip=plan.clip,
            stop=interruption.asked,
            after_step=after_step,
        )
    if stopped and done.step < plan.steps:
        _LOG.warning("stopped and saved at step %d of %d; go on with --resume auto", done.step, plan.steps)
        return None
    if measured is None:  # resumed at its end: the curves have these numbers already
        measured = evaluate_all(experiment, parts, data, Tracker.silent(), done.step)
    return measured


def evaluate_all(
    experiment: AnyExperiment, parts: Parts, data: Mapping[str, Examples], tracker: Tracker, step: int
) -> dict[str, Evaluation]:
    """Measure the network on every entry of `evaluation.data`; log the numbers and a few pictures."""
    measured = {}
    for name in experiment.evaluation.data:
        examples = data[name]
        count = min(experiment.tracking.images, len(examples))
        shown = {round((i + 0.5) * len(examples) / count - 0.5) for i in range(count)}
        pictures = {}

        def draw(index: int, batch: Batch, outputs: Any, shown: set[int] = shown, pictures: dict = pictures) -> None:
            if index in shown:
                pictures[f"{index:05d}"] = panels(batch, outputs, 1)[0]

        measured[name] = evaluate(parts.accelerator, parts.model, examples, after_example=draw)
        values = {f"{name}/{k}": v for k, v in measured[name].values().items()}
        tracker.log(step, values)
        tracker.pictures(step, {f"{name}/{k}": v for k, v in pictures.items()})
        _LOG.info("step %d  %s", step, describe({k: v for k, v in values.items() if _headline(k)}))
    return measured


def _headline(name: str) -> bool:
    return name.rpartition("/")[2] in ("J_mean", "F_mean", "iou", "miou", "epe", "fl_all")


def _finish(parts: Parts, measured: Mapping[str, Evaluation], run_dir: Path, done: Done) -> dict[str, dict[str, float]]:
    results = {name: evaluation.values() for name, evaluation in measured.items()}
    weights, _ = checkpoint.states(parts.accelerator.unwrap_model(parts.model), parts.optimizer.optimizer)
    if parts.accelerator.is_main_process:
        checkpoint.export(run_dir / "weights.safetensors", weights)
        checkpoint.write_atomically(run_dir / "results.json", json.dumps(results, indent=1).encode())
        _LOG.info("done: %d steps; weights, curves and pictures are in %s", done.step, run_dir)
    return results


def _describe(experiment: AnyExperiment, parts: Parts, started: Started, regularizer: L2SP | None) -> None:
    """Print which weights are anchored to what, which are new, which are free, and how strong the pulls are."""
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
        coupled = regularizer is not None and regularizer.coupled(parts.optimizer)
        momentum = getattr(experiment.optimizer, "momentum", None)
        tau = "-"
        if regularizer is not None and alpha[branch] and not (coupled and momentum is None):
            steps = time_constant(alpha[branch], lr, coupled=coupled, momentum=momentum or 0.0)
            tau = f"{steps:,.0f}"
        held = experiment.branches[branch].freeze
        table.add_row(
            branch + (" (frozen)" if held else ""),
            *(f"{size / 1e6:.2f} M" for size in sizes.values()),
            *(f"{strength[branch]:g}" if strength else "-" for strength in (alpha, beta)),
            f"{lr:g}",
            tau,
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
    parser.add_argument("--config", required=True, help="a YAML file, looked for in configs/ if no folder is named")
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
    experiment = read_experiment(options.config, options.overrides)
    if options.print_config:
        print(as_yaml(experiment), end="")
        return 0
    run(experiment, options.run_dir or Path("runs") / experiment.name, options.resume)
    return 0


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
