"""Handle signals that ask a run to save and stop."""

import os
import signal
import sys
from pathlib import Path
from typing import Any


class StopSignals:
    """A context in which SIGTERM or Ctrl-C asks the run to save and stop; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        _follow_launcher()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = True
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    def received(self) -> bool:
        """Return whether a signal has been received."""
        return self._received


def _follow_launcher() -> None:
    """Receive SIGTERM when `accelerate launch` ends: it forwards no signal to a single process, which would run on.

    This is done under no other parent: closing a shell must not stop a run that `nohup` started.
    """
    if sys.platform != "linux":
        return
    import ctypes

    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    if any(Path(word.decode(errors="replace")).name in ("accelerate", "accelerate-launch") for word in command[:3]):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
