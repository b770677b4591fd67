"""Trackers of others, such as wandb: if one fails, the run goes on without it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtsp.tracking.metrics_file import METRICS

_LOG = logging.getLogger("mtsp")


class ExternalTracker:
    """A tracker that never stops a run: after a failure it tries its next mode, and after the last mode it is silent.

    Args:
        modes: in the order in which they are tried.
    """

    name: str

    def __init__(self, modes: Iterable[str]) -> None:
        self._modes = list(modes)
        self._sink: Any = None
        self._attempt(lambda sink: None)

    def _open(self, mode: str) -> Any:
        """Return the tracker's own run or writer."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers."""
        raise NotImplementedError

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report figures, HW3 uint8 by name."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish what is under way."""
        raise NotImplementedError

    def _attempt(self, action: Callable[[Any], object]) -> None:
        while self._modes:
            try:
                if self._sink is None:
                    self._sink = self._open(self._modes[0])
                action(self._sink)
            except Exception as error:  # whatever it is, it must not stop the run
                failed, *self._modes = self._modes
                self._sink = None
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                rest = f"goes on {self._modes[0]}" if self._modes else "goes on without it"
                _LOG.warning(
                    "%s (%s) FAILED: %s; the run %s, %s has every number", self.name, failed, reason, rest, METRICS
                )
            else:
                return
