"""Continue a run from a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object

from mtsp.anchors import fingerprint
from mtsp.config import ConfigError, parse_yaml
from mtsp.distributed.sharding import has_shards, load_full_states
from mtsp.tracking.metrics_file import METRICS, read_metrics
from mtsp.training.checkpoint import atomic_save, storage
from mtsp.training.checks.samples import other_data
from mtsp.training.experiment import AnyExperiment
from mtsp.training.state import Position, TrainingRun

FREE_TO_CHANGE = (
    "tracking",
    "evaluation",
    "data.*.cache",
    *(f"train.{name}" for name in ("steps", "workers", "timeout", "save_every", "async_save")),
    *(f"train.{name}" for name in ("keep_last", "keep_every", "keep_best", "keep_before_spike")),
)
"""Settings that may change on resume, including all settings nested in them."""

FREE_TO_MOVE = ("data.*.dataset.root", "data.*.dataset.frames", "branches.*.weights", "regularizer.fisher")
"""Paths that may change on resume, but not become null. Fingerprints detect changed file contents."""

FREE_TO_MOVE_UNRENAMED = ("data.*.dataset.masks", "data.*.dataset.list", "data.*.dataset.classes")
"""Paths that may change on resume except for their last part, which names the kind of labels in some data sets."""

_LOG = logging.getLogger("mtsp")


def checkpoint_to_resume(accelerator: Accelerator, run_dir: Path, resume: str | None) -> storage.Checkpoint | None:
    """Return the verified checkpoint to continue from, or None for a new run.

    `resume` is as in :func:`mtsp.training.run.run_experiment`. All processes must find the same checkpoint.

    Raises:
        ConfigError: `run_dir` already contains a run, and `resume` is None.
        CheckpointError: no checkpoint is complete, there is none and `resume` is `must`, or the processes found
            different checkpoints.
    """
    folder = run_dir / "checkpoints"
    if accelerator.is_main_process:
        atomic_save.recover(folder)
    accelerator.wait_for_everyone()
    if resume is None:
        if storage.checkpoints(folder) or (run_dir / "results.json").exists():
            raise ConfigError(f"{run_dir} contains a run; continue it with --resume auto, or choose another --run-dir")
        return None
    found = storage.newest(folder) if resume in ("auto", "must") else storage.load(Path(resume))
    if found is None:
        if storage.checkpoints(folder):
            raise storage.CheckpointError(f"all checkpoints in {folder} are damaged; delete them to start over")
        if resume == "must":
            raise storage.CheckpointError(f"there is no checkpoint in {folder}; use --resume auto to start a new run")
        if (run_dir / METRICS).exists():
            _LOG.warning(
                "%s has curves but no checkpoint: THE RUN STARTS ANEW at step 1; --resume must refuses this", run_dir
            )
    steps = [found.state["step"] if found is not None else 0]
    if accelerator.num_processes > 1 and len(set(steps := gather_object(steps))) > 1:
        raise storage.CheckpointError(
            f"the processes found checkpoints of different steps, {steps}; put {folder} on a disk that all nodes share"
        )
    return found


def restore(run: TrainingRun, saved: storage.Checkpoint) -> None:
    """Restore weights, optimizer, position and averages from a checkpoint; log settings that have changed since then.

    Raises:
        ConfigError: a setting that must stay has changed, or the checkpoint is beyond the last step.
        CheckpointError: the checkpoint has another network, other anchors or data, or was saved with FSDP and the run
            does not use it, or the reverse.
    """
    state, accelerator = saved.state, run.state.accelerator
    for difference in require_resumable(run.experiment.model_dump(mode="json"), state["experiment"]):
        _LOG.info("changed since the checkpoint: %s", difference)
    if state["processes"] != accelerator.num_processes:
        _LOG.info("processes: now %d, was %d; dropout will differ", accelerator.num_processes, state["processes"])
    if state["anchors"] != fingerprint(run.pretrained.anchors):
        raise storage.CheckpointError(
            f"{saved.path} was trained with anchors that differ from the branches' `weights`; restore those files"
        )
    if other := other_data(run.fingerprints, state["data"]):
        raise storage.CheckpointError(
            f"{saved.path} was trained on other data: {'; '.join(other)}; restore these files, or start a new run"
        )
    if state["sharded"] != (sharded := has_shards(run.network)):
        here, there = ("with", "without") if sharded else ("without", "with")
        raise storage.CheckpointError(f"{saved.path} was saved {there} FSDP and cannot be resumed {here} it")
    if run.ema is not None and saved.ema is None:
        raise storage.CheckpointError(f"{saved.path} has no averaged weights; start a new run, or leave out train.ema")
    try:
        load_full_states(run.network, run.state.optimizer.optimizer, saved.model, saved.optimizer)
        if run.ema is not None and saved.ema is not None:
            run.ema.load_state_dict(saved.ema)
    except (RuntimeError, ValueError, KeyError) as error:
        raise storage.CheckpointError(f"{saved.path} has another network: {str(error).splitlines()[0]}") from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if run.state.task_weights is not None:
        run.state.task_weights.load_state_dict(state["task_weights"])
    if state["step"] > run.experiment.train.steps:
        steps = run.experiment.train.steps
        raise ConfigError(f"{saved.path} is beyond train.steps={steps}; increase it, or choose a new --run-dir")
    run.position = Position(state["step"], state["batches"])
    run.meter.values = state["meter"]
    run.validated_at = state["validated_at"]
    run.scores = {int(step): score for step, score in state["scores"].items()}
    run.spikes.losses, run.spikes.saved_before = state["losses"], state["before_spikes"]
    if run.validated_at < state["step"] and _has_validation(run):
        run.validated_at = state["step"]


def _has_validation(run: TrainingRun) -> bool:
    """Return whether the curves have the whole validation of this step: a checkpoint is saved before it."""
    path, step, wanted = run.folder / METRICS, run.position.step, run.experiment.evaluation.data
    rows = [row for row in read_metrics(path) if row["step"] == step] if path.is_file() else []
    return all(any(key.startswith(f"{name}/") for row in rows for key in row) for name in wanted)


def require_same_fisher(run: TrainingRun, saved: storage.Checkpoint) -> None:
    """Check that the attached regularizer reads the same Fisher information as when the checkpoint was saved.

    Raises:
        CheckpointError: the Fisher information differs.
    """
    if saved.state.get("fisher") != fisher_of(run):
        raise storage.CheckpointError(f"{saved.path} was trained with another `regularizer.fisher`; restore it")


def fisher_of(run: TrainingRun) -> str | None:
    """Return the fingerprint of the Fisher information that the regularizer uses, or None."""
    return None if run.regularizer is None else run.regularizer.state_dict().get("fisher")


class Difference(NamedTuple):
    """A setting with different values in two resolved experiments."""

    key: tuple[str, ...]
    """Key with its sections, such as ("train", "steps")."""
    now: Any
    saved: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: now {self.now!r}, was {self.saved!r}"

    def resumable(self) -> bool:
        """Return whether a run may be resumed with this change."""
        if matches(self.key, FREE_TO_CHANGE):
            return True
        if matches(self.key, FREE_TO_MOVE):
            return None not in (self.now, self.saved)
        both_paths = isinstance(self.now, str) and isinstance(self.saved, str)
        return both_paths and matches(self.key, FREE_TO_MOVE_UNRENAMED) and Path(self.now).name == Path(self.saved).name


def differences(now: Any, saved: Any, *sections: str) -> list[Difference]:
    """Return the differences between two resolved experiments (plain data), in alphabetical order of the keys."""
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        return [
            difference
            for name in sorted(now.keys() | saved.keys())
            for difference in differences(now.get(name), saved.get(name), *sections, str(name))
        ]
    return [] if now == saved else [Difference(sections, now, saved)]


def require_resumable(now: Mapping[str, Any], saved: Mapping[str, Any]) -> list[Difference]:
    """Return the differences between the current experiment and the experiment in a checkpoint.

    Raises:
        ConfigError: settings differ that must not change on resume; the message lists them.
    """
    found = differences(now, saved)
    if forbidden := [difference for difference in found if not difference.resumable()]:
        lines = "\n".join(f"  {difference}" for difference in forbidden)
        raise ConfigError(
            f"this checkpoint belongs to another experiment; start a new run, or restore these settings:\n{lines}"
        )
    return found


def is_finished(experiment: AnyExperiment, run_dir: Path, *, may_differ: Sequence[str], otherwise: str) -> bool:
    """Return whether `run_dir` contains the finished run of this experiment.

    Settings in `may_differ`, and settings nested in them, may differ. If another setting differs, the error message
    ends with the advice `otherwise`.

    Raises:
        ConfigError: the run in `run_dir` is finished, but had other settings.
    """
    if not (run_dir / "results.json").exists():
        return False
    saved = parse_yaml((run_dir / "experiment.yaml").read_text(encoding="utf-8"))
    found = differences(experiment.model_dump(mode="json"), saved)
    if odd := [difference for difference in found if not matches(difference.key, may_differ)]:
        raise ConfigError(f"{run_dir} is finished, but with other settings ({odd[0]}); {otherwise}")
    return True


def matches(key: tuple[str, ...], patterns: Sequence[str]) -> bool:
    """Return whether a key equals one of the dotted patterns or is nested in it; `*` matches any one part."""
    return any(
        len(key) >= len(parts) and all(part in ("*", name) for part, name in zip(parts, key, strict=False))
        for parts in (pattern.split(".") for pattern in patterns)
    )
