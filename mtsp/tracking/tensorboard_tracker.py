"""TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtsp.tracking.external import ExternalTracker


class TensorBoardTracker(ExternalTracker):
    """Writes event files to `run_dir/tensorboard`, with the resolved config as text.

    A resumed run replaces the events after `resume_step`.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, resume_step: int | None, experiment: Mapping[str, Any]) -> None:
        self._run_dir = run_dir
        self._resume_step = resume_step
        self._experiment = experiment
        super().__init__(["files"])

    def _open(self, mode: str) -> Any:
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        purge = None if self._resume_step is None else self._resume_step + 1
        writer = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=purge)
        if purge is None:
            text = yaml.safe_dump(dict(self._experiment), sort_keys=False)
            writer.add_text("experiment", "\n".join("    " + line for line in text.splitlines()))
        return writer

    def _log(self, sink: Any, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            sink.add_scalar(name, value, step)
        sink.flush()

    def _figures(self, sink: Any, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            sink.add_image(name, image, step, dataformats="HWC")
        sink.flush()

    def _close(self, sink: Any) -> None:
        sink.close()
