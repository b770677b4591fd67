"""Report to third-party trackers, such as wandb: if one fails, the run continues without it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtsp.tracking.metrics_file import METRICS

_LOG = logging.getLogger("mtsp")


class ExternalTracker:
    """A tracker that never stops a run: after a failure it tries its next mode; after the last mode it reports nothing.

    A subclass reports to its own run or writer, the `sink`, and may raise anything there.
    """

    name: str

    def __init__(self, modes: Iterable[str]) -> None:
        self._modes = list(modes)
        self._sink: Any = None
        self._attempt(lambda sink: None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report the values of a step by name."""
        self._attempt(lambda sink: self._log(sink, step, values))

    def figures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Report figures, HW3 uint8 by name."""
        self._attempt(lambda sink: self._figures(sink, step, images))

    def close(self) -> None:
        """Finish uploads and files."""
        if self._sink is not None:
            self._modes = self._modes[:1]  # if it cannot finish, do not start another run
            self._attempt(self._close)

    def _open(self, mode: str) -> Any:
        raise NotImplementedError

    def _log(self, sink: Any, step: int, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _figures(self, sink: Any, step: int, images: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def _close(self, sink: Any) -> None:
        raise NotImplementedError

    def _attempt(self, action: Callable[[Any], object]) -> None:
        while self._modes:
            try:
                if self._sink is None:
                    self._sink = self._open(self._modes[0])
                action(self._sink)
            except Exception as error:  # no error of a tracker may stop the run
                failed, *self._modes = self._modes
                self._sink = None
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                rest = f"continues {self._modes[0]}" if self._modes else "continues without it"
                _LOG.warning(
                    "%s (%s) FAILED: %s; the run %s; %s has all metrics", self.name, failed, reason, rest, METRICS
                )
            else:
                return
