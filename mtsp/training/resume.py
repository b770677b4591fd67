"""Save a run, and continue it from a checkpoint."""

import logging
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from mtsp.anchors import fingerprint
from mtsp.config import ConfigError
from mtsp.distributed.sharding import full_states, is_sharded, load_full_states
from mtsp.training import checkpoint
from mtsp.training.experiment import check_resumable
from mtsp.training.state import Position, TrainingRun

_LOG = logging.getLogger("mtsp")


def checkpoint_to_resume(accelerator: Accelerator, run_dir: Path, resume: str | None) -> checkpoint.Checkpoint | None:
    """Return the verified checkpoint to continue from, or None for a new run.

    Args:
        accelerator: the run's; all processes must find the same checkpoint.
        run_dir: the run's folder.
        resume: see :func:`mtsp.training.run.run_experiment`.

    Raises:
        ConfigError: `run_dir` already holds a run, and `resume` is None.
        CheckpointError: no checkpoint is complete, or the processes found different ones.
    """
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


def restore(run: TrainingRun, saved: checkpoint.Checkpoint) -> None:
    """Restore weights, optimizer, position and averages from a checkpoint; log the settings that changed since.

    Raises:
        ConfigError: a setting changed that must not, or the checkpoint is beyond the last step.
        CheckpointError: the network, the anchors, or the use of FSDP differ.
    """
    state, accelerator = saved.state, run.state.accelerator
    for line in check_resumable(run.experiment.model_dump(mode="json"), state["experiment"]):
        _LOG.info("changed since the checkpoint: %s", line)
    if state["processes"] != accelerator.num_processes:
        _LOG.info("processes: now %d, was %d; dropout will differ", accelerator.num_processes, state["processes"])
    if state["anchors"] != fingerprint(run.pretrained.anchors):
        raise checkpoint.CheckpointError(
            f"{saved.path} was trained towards other anchors than the branches' `weights` give now; restore those files"
        )
    if state["sharded"] != (sharded := is_sharded(run.network)):
        here, there = ("with", "without") if sharded else ("without", "with")
        raise checkpoint.CheckpointError(f"{saved.path} was saved {there} FSDP and cannot be resumed {here} it")
    if run.ema is not None and saved.ema is None:
        raise checkpoint.CheckpointError(f"{saved.path} has no averaged weights, which this run would go on from")
    try:
        load_full_states(run.network, run.state.optimizer.optimizer, saved.model, saved.optimizer)
        if run.ema is not None and saved.ema is not None:
            run.ema.load_state_dict(saved.ema)
    except (RuntimeError, ValueError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{saved.path} is of another network: {str(error).splitlines()[0]}") from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if state["step"] > run.experiment.train.steps:
        raise ConfigError(
            f"{saved.path} is beyond train.steps={run.experiment.train.steps}; give more, or a new --run-dir"
        )
    run.position = Position(state["step"], state["batches"])
    run.meter.values = state["meter"]
    run.validated_at = state["validated_at"]


def require_same_fisher(run: TrainingRun, saved: checkpoint.Checkpoint) -> None:
    """Check that the attached regularizer reads the same Fisher information as when the checkpoint was saved.

    Raises:
        CheckpointError: it does not.
    """
    if saved.state.get("fisher") != _fisher(run):
        raise checkpoint.CheckpointError(f"{saved.path} was trained with another `regularizer.fisher`; restore it")


def _fisher(run: TrainingRun) -> str | None:
    return None if run.regularizer is None else run.regularizer.state_dict().get("fisher")


def save(run: TrainingRun) -> None:
    """Save a checkpoint from the main process; the others wait, so that none gets ahead of the disk."""
    accelerator = run.state.accelerator
    model, optimizer = full_states(run.network, run.state.optimizer.optimizer)
    ema = None if run.ema is None else run.ema.state_dict()
    if accelerator.is_main_process:
        state = {
            "step": run.position.step,
            "batches": run.position.batches,
            "experiment": run.experiment.model_dump(mode="json"),
            "anchors": fingerprint(run.pretrained.anchors),
            "fisher": _fisher(run),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "processes": accelerator.num_processes,
            "sharded": is_sharded(run.network),
            "meter": run.meter.values,
            "validated_at": run.validated_at,
            "tracker": run.tracker.state(),
        }
        folder = run.folder / "checkpoints"
        checkpoint.save(
            folder, run.position.step, model, optimizer, state, keep_last=run.experiment.train.keep_last, ema=ema
        )
    accelerator.wait_for_everyone()
