"""Save a run: decide when, copy its state, and write the copy in a thread while the training goes on.

What a kill during a save does: see :mod:`mtsp.training.checkpoint.atomic_save`.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtsp.anchors import fingerprint
from mtsp.distributed.sharding import full_states, has_shards
from mtsp.training.checkpoint import atomic_save, storage
from mtsp.training.checkpoint.resume import fisher_of
from mtsp.training.checkpoint.retention import IntervalConfig, is_kept
from mtsp.training.state import TrainingRun


class Saver:
    """A context in which a run saves checkpoints; when it ends, the last one is on the disk.

    The main process copies the state into memory, and a thread writes the copy. A save waits for the one before, so
    that there is at most one copy. If the thread fails, the next :meth:`check` or :meth:`save` raises its error, or the
    end of the context does. The other processes wait for nothing.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._folder = run.folder / "checkpoints"
        self._anchors = fingerprint(run.pretrained.anchors)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None
        self._time = time.monotonic()
        resumed = run.position.step if (self._folder / storage.name_of(run.position.step)).exists() else None
        self.saved_at: int | None = resumed
        """Step of the newest checkpoint, which may still be being written."""

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._wait()
        except (OSError, FloatingPointError):
            if kind is None:  # otherwise report what ended the run
                raise
        finally:
            self._thread.shutdown()

    def due(self) -> bool:
        """Return whether a checkpoint is due at this step."""
        every = self._run.experiment.train.save_every
        return isinstance(every, int) and self._run.position.step % every == 0

    def asks(self) -> bool:
        """Return whether this process asks all to save after the next step: the main process by its clock."""
        every = self._run.experiment.train.save_every
        main = self._run.state.accelerator.is_main_process
        return isinstance(every, IntervalConfig) and main and time.monotonic() - self._time >= every.seconds

    def save(self) -> None:
        """Save this step, unless it is saved. Call it on all processes."""
        run, config = self._run, self._run.experiment.train
        step = run.position.step
        if step == self.saved_at:
            return
        model, optimizer = full_states(run.network, run.state.optimizer.optimizer)
        if run.state.accelerator.is_main_process:
            self._wait()
            self._pending = self._thread.submit(
                atomic_save.save,
                self._folder,
                step,
                {name: _copied(tensor, torch.contiguous_format) for name, tensor in model.items()},
                _copied(optimizer),
                self._state(),
                keep_last=config.keep_last,
                keeps=is_kept(config.keep_every, config.keep_best, dict(run.scores), run.spikes.saved_before[:]),
                ema=None if run.ema is None else _copied(run.ema.state_dict()),
            )
            if not config.async_save:
                self._wait()
        self.saved_at, self._time = step, time.monotonic()

    def keep_before(self, step: int) -> int | None:
        """Keep the newest checkpoint whose weights did not see step `step` - 1, and return its step, or None."""
        self._wait()  # the newest may still be on its way
        limit, kept = self._run.experiment.train.keep_before_spike, self._run.spikes.saved_before
        steps = [storage.step_of(path) for path in storage.checkpoints(self._folder)]
        before = max((saved for saved in steps if saved < step - 1), default=None)
        if before is not None:
            kept[:] = [*(one for one in kept if one != before), before][-limit:] if limit else []
        return before if limit else None

    def check(self) -> None:
        """Raise the error of the last save, if it has failed by now."""
        if self._pending is not None and self._pending.done():
            self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _state(self) -> dict[str, Any]:
        """Return the plain data of a checkpoint; they do not change with the run."""
        run, accelerator = self._run, self._run.state.accelerator
        return {
            "step": run.position.step,
            "batches": dict(run.position.batches),
            "experiment": run.experiment.model_dump(mode="json"),
            "anchors": self._anchors,
            "data": run.fingerprints,
            "classes": run.classes,
            "fisher": fisher_of(run),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "task_weights": None if run.state.task_weights is None else run.state.task_weights.state_dict(),
            "processes": accelerator.num_processes,
            "sharded": has_shards(run.network),
            "meter": {name: list(values) for name, values in run.meter.values.items()},
            "validated_at": run.validated_at,
            "scores": dict(run.scores),
            "losses": dict(run.spikes.losses),
            "before_spikes": list(run.spikes.saved_before),
            "tracker": run.tracker.state(run.position.step),
        }


def _copied(tree: Any, memory_format: torch.memory_format = torch.preserve_format) -> Any:
    """Return nested dicts and lists with copies of their tensors in memory."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True, memory_format=memory_format)
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree
