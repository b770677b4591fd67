"""Report to Weights & Biases."""

import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mtsp.tracking.external import ExternalTracker

_LOG = logging.getLogger("mtsp")

ANSWER_SECONDS = 5.0
"""Seconds in which the server must answer a first request; wandb itself takes 40 s to give up, and 20 s at the end."""
INIT_SECONDS = 20.0
"""Seconds that wandb waits for its server, which has answered a first request."""
FINISH_SECONDS = 120.0
"""Seconds that wandb may upload after the last step; remaining data stays on disk for `wandb sync`."""


class WandbTracker(ExternalTracker):
    """Reports to wandb, which writes to `run_dir/wandb`; without a login or a server it continues offline.

    Args:
        run_dir: the run's folder.
        mode: `online` or `offline`.
        run_id: wandb's id of the run; a resumed run keeps it.
        about: project, name and config, as in `wandb.init`.
    """

    name = "wandb"

    def __init__(self, run_dir: Path, mode: str, run_id: str, **about: Any) -> None:
        self.run_id = run_id
        self._run_dir = run_dir
        self._chosen = mode
        self._about = about
        super().__init__([mode] if mode == "offline" else [mode, "offline"])

    def _open(self, mode: str) -> Any:
        import wandb

        if mode != "offline":
            if wandb.login(prompt=False, verify=False):
                _require_answer(wandb.setup().settings.base_url)
            else:
                mode, folder = "offline", self._run_dir / "wandb"
                why = "no login (`wandb login` stores one)"
                _LOG.warning("wandb: %s; the run is recorded offline in %s (`wandb sync`)", why, folder)
        settings = wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        if mode == "offline":
            if wandb.run is None:  # else the service belongs to a run of the caller, which teardown would end
                wandb.teardown()  # after a failed init, its service still holds the run id
                wandb.setup(wandb.Settings(mode="offline"))  # else it asks the server at its end, and waits 12 s for it
            settings.silent = self._chosen != "offline"
        run = wandb.init(
            **self._about,
            dir=self._run_dir,
            id=self.run_id,
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            reinit="create_new",  # do not touch a run of the caller's notebook
            settings=settings,
        )
        # Use a separate step metric: wandb's own `step` restarts at 0 when a run is resumed offline, and wandb drops
        # values logged at a smaller step.
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        return run

    def _log(self, sink: Any, step: int, values: Mapping[str, float]) -> None:
        sink.log({**values, "global_step": step})

    def _figures(self, sink: Any, step: int, images: Mapping[str, np.ndarray]) -> None:
        import wandb

        sink.log({**{name: wandb.Image(image) for name, image in images.items()}, "global_step": step})

    def _close(self, sink: Any) -> None:
        sink.finish()


def _require_answer(url: str) -> None:
    """Raise OSError unless the server answers, with whatever status."""
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
        pass
