"""Handle signals that ask a run to save and stop."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mtsp.files.progress import console_may_close

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals of service managers, terminals and schedulers that ask a run to save and stop."""
REPEAT_SECONDS = 5.0
"""A launcher repeats a signal, or ends and so causes another. Within this time, Ctrl-C is the same request."""


class StopSignals:
    """A context in which a signal in `STOP` asks the run to save and stop.

    Further signals change nothing, except Ctrl-C after `REPEAT_SECONDS`, which ends the process at once.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` ignores it
                self._before[number] = signal.signal(number, self._handle)
        _follow_launcher()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            text = f"{signal.Signals(number).name}: saving and stopping after this step"
            with console_may_close():
                print(f"{text}; Ctrl-C after {REPEAT_SECONDS:.0f} s stops at once", file=sys.stderr, flush=True)
        elif number == signal.SIGINT and now - self._since > REPEAT_SECONDS:
            os._exit(128 + number)

    def received(self) -> bool:
        """Return whether a signal has been received."""
        return self._since is not None


def _follow_launcher() -> None:
    """Receive SIGTERM when the launcher ends: `accelerate launch` forwards no signal, and torchrun may be killed.

    This is done under no other parent: closing a shell must not stop a run that `nohup` started.
    """
    if sys.platform != "linux":
        return
    import ctypes

    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    names = {Path(word.decode(errors="replace")).name for word in command[:3]}
    if "TORCHELASTIC_RUN_ID" in os.environ or names & {"accelerate", "accelerate-launch"}:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
