"""A bar that shows how far a loop is, where somebody sees it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(title: str, count: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Yield what to call after each of `count` steps; nothing is drawn unless `shown` on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(title, total=count)
        yield lambda: progress.advance(task)
