"""Show progress: a bar in a terminal, otherwise a line from time to time."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY = 10.0  # seconds between two lines if there is no terminal


@contextmanager
def console_may_close() -> Iterator[None]:
    """Within the context, ignore that a terminal was closed or a pipe broke; after that, discard what stderr is told.

    Ctrl-C ends `tee` in `train.py 2>&1 | tee log` before the run has saved.
    """
    try:
        yield
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)


class Advance(Protocol):
    """A function that advances a progress bar."""

    def __call__(self, done: int | None = None, total: int | None = None, note: str = "") -> None:
        """Advance by one step, or to `done` steps; optionally set a new `total`, and a `note` for a column to show."""
        ...


@contextmanager
def bar(
    title: str,
    total: int | None = None,
    *,
    done: int = 0,
    shown: bool = True,
    stays: bool = False,
    counters: Sequence[ProgressColumn] = (),
) -> Iterator[Advance]:
    """Draw a bar on stderr within the context; yield the function that advances it.

    Args:
        title: text before the bar.
        total: number of steps; None if it is not known yet.
        done: number of steps already done.
        shown: whether to draw the bar; use False in all processes except the main process.
        stays: keep the finished bar on the screen, and without a terminal, print it once at the end.
        counters: columns between the bar and the remaining time; default: "done/total".
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *(counters or (MofNCompleteColumn(),)))
    if not shown or not (stays or console.is_terminal):
        yield lambda done=None, total=None, note="": None  # rich before 14.1 ends a disabled bar with a blank line
        return
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=not stays) as drawn:
        task = drawn.add_task(title, total=total, completed=done, note="")

        def advance(done: int | None = None, total: int | None = None, note: str = "") -> None:
            drawn.update(task, completed=done, advance=1 if done is None else None, total=total, note=note)

        yield advance


@contextmanager
def progress(what: str, total: int, unit: str, *, brief: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a callback(done) that advances a bar in a terminal.

    Without a terminal it prints a line at each tenth of `total` and every ten seconds; with `brief`, only the latter.
    """
    if Console(stderr=True).is_terminal:
        with bar(what, total, stays=not brief) as advance:
            yield advance
        return
    began = last = time.monotonic()
    told = -1

    def advance(done: int) -> None:
        nonlocal told, last
        now, tenth = time.monotonic(), 10 * done // total
        if (tenth > told and not brief) or now - last >= _LINE_EVERY:
            told, last = tenth, now
            print(f"{what}: {done:,} of {total:,} {unit}, {now - began:,.0f} s", file=sys.stderr, flush=True)

    yield advance


@contextmanager
def training_progress(shown: bool, steps: int, start: int) -> Iterator[Callable[[int, str], None]]:
    """Yield a callback(step, losses) that advances a bar in a terminal, beginning at step `start`.

    Without a terminal it prints a line at each twentieth of the run. If `shown` is False, it does nothing.
    """
    if shown and sys.stderr.isatty():
        counters = (MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        with bar("training", steps, done=start, stays=True, counters=counters) as advance:

            def move(step: int, losses: str) -> None:
                with console_may_close():
                    advance(step, note=losses)

            yield move
        return
    began = time.perf_counter()

    def line(step: int, losses: str) -> None:
        if shown and (step % max(1, steps // 20) == 0 or step == steps):
            left = (steps - step) * (time.perf_counter() - began) / (step - start)
            with console_may_close():
                print(f"step {step}/{steps}  {losses}  {left:,.0f} s left", file=sys.stderr, flush=True)

    yield line
