"""Report a run's metrics and figures: metrics to `metrics.jsonl`, and on request both to wandb and TensorBoard.

`metrics.jsonl` has every metric. The other trackers may fail at any time; the run continues without them.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from mtsp.config import Config, ConfigError
from mtsp.tracking.external import ExternalTracker
from mtsp.tracking.metrics_file import METRICS, MetricsFile, cannot_write
from mtsp.tracking.tensorboard_tracker import TensorBoardTracker
from mtsp.tracking.wandb_tracker import WandbTracker

FIGURES = "figures"


class TrackingConfig(Config):
    """Trackers, and how often the run reports to them."""

    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers besides `metrics.jsonl`, which is always written."""
    project: str = Field(default="mtsp", min_length=1)
    """Name of the wandb project."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """Mode of wandb. The environment variable WANDB_MODE overrides it."""
    log_every: int = Field(default=50, gt=0)
    """Number of optimizer steps between two lines of training metrics."""
    images: int = Field(default=4, ge=0)
    """Number of samples to draw as figures at each validation, per data entry."""
    frames: int = Field(default=12, ge=0)
    """Number of frames of the first video to draw at the end of the run, evenly spaced, per data entry of videos."""


class Tracker:
    """Writes the metrics and figures of a run. The main process opens it; other processes use `Tracker.silent()`.

    `metrics.jsonl` in the run's folder has one JSON object per line: `step`, `time` (seconds since 1970), then the
    values, with null for NaN and infinities. A line has been written when `log` returns. Figures are
    `figures/STEP-NAME.png`.
    """

    def __init__(
        self, folder: Path | None, metrics: MetricsFile | None = None, others: Sequence[ExternalTracker] = ()
    ) -> None:
        self._folder, self._metrics, self._others = folder, metrics, others

    @classmethod
    def silent(cls) -> Self:
        """Return a tracker that writes nothing."""
        return cls(None)

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        run_dir: Path,
        experiment: Mapping[str, Any],
        run_name: str,
        resume_state: Mapping[str, Any] | None = None,
        again: tuple[str, ...] = (),
    ) -> Self:
        """Return the tracker of a new or resumed run. Call it on the main process.

        A resumed run continues its curves: lines logged after the checkpoint are dropped, and wandb continues the same
        run. A new run renames the `metrics.jsonl` of an earlier run to `metrics.1.jsonl`, `metrics.2.jsonl` and so on.

        Args:
            config: which trackers to use.
            run_dir: the run's folder; created if it does not exist.
            experiment: the resolved config as plain data, shown beside the curves.
            run_name: name of the run in the trackers.
            resume_state: the result of :meth:`state` in the checkpoint to continue from; None for a new run.
            again: how the names of values begin that will be logged again for the checkpoint's own step.

        Raises:
            ConfigError: a tracker is not installed.
            OSError: the folder cannot be written.
        """
        if "tensorboard" in config.trackers and find_spec("tensorboard") is None:
            raise ConfigError("tracking.trackers: tensorboard is not installed; pip install mtsp[tensorboard]")
        resume = resume_state or {}
        resume_step: int | None = resume.get("step")
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(run_dir / METRICS, resume_step, again)
        others: list[ExternalTracker] = []
        mode = os.environ.get("WANDB_MODE", config.mode)
        if "wandb" in config.trackers and mode != "disabled":
            run_id = resume.get("wandb_id") or secrets.token_hex(4)
            about = {"project": config.project, "name": run_name, "config": dict(experiment)}
            others.append(WandbTracker(run_dir, mode, run_id, **about))
        if "tensorboard" in config.trackers:
            others.append(TensorBoardTracker(run_dir, resume_step, experiment))
        return cls(run_dir, metrics, others)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report `values` at optimizer step `step`.

        Raises:
            OSError: `metrics.jsonl` cannot be written, for example on a full disk. Other trackers never raise.
        """
        if self._metrics is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append(step, numbers)
        for other in self._others:
            other.log(step, numbers)

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report figures, HW3 uint8 by name; a `/` in a name becomes `-` in the file name.

        Raises:
            OSError: a PNG cannot be written.
        """
        if self._folder is None or not images:
            return
        folder = self._folder / FIGURES
        folder.mkdir(exist_ok=True)
        for name, image in images.items():
            path = folder / f"{step:07d}-{name.replace('/', '-')}.png"
            try:
                Image.fromarray(image).save(path)
            except OSError as error:
                raise cannot_write(path, error) from error
        for other in self._others:
            other.figures(step, images)

    def state(self, step: int) -> dict[str, Any]:
        """Return the tracker's state for a checkpoint of this step, as plain data."""
        run_ids = [other.run_id for other in self._others if isinstance(other, WandbTracker)]
        return {"step": step, "wandb_id": run_ids[0] if run_ids else None}

    def close(self) -> None:
        """Finish the files and the trackers; wait at most about two minutes for an upload."""
        for other in self._others:
            other.close()
        if self._metrics is not None:
            self._metrics.close()
