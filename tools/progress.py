"""A bar that shows how far a loop is, where somebody sees it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, done: int | None = None, total: int | None = None, note: str = "") -> None:
        """One more is done, or `done` in all; of `total`, if that is new; a column may show `note`."""
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
    """Draw a bar on the terminal's error output inside a `with`, and give what moves it.

    Args:
        title: before the bar.
        total: where it ends; None: not known yet.
        done: what was done before.
        shown: False draws nothing, as in all processes but one.
        stays: the bar stays when it is done, and where there is no terminal its end is printed. Otherwise nothing is
            left of it, and nothing is drawn elsewhere.
        counters: columns between the bar and the time that is left; by default "done/total".
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *(counters or (MofNCompleteColumn(),)))
    hidden = not shown or not (stays or console.is_terminal)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=not stays, disable=hidden) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(done: int | None = None, total: int | None = None, note: str = "") -> None:
            progress.update(task, completed=done, advance=1 if done is None else None, total=total, note=note)

        yield advance
