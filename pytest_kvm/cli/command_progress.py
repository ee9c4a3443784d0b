"""Shows on standard error how a command gets on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pytest_kvm.images.build_progress import BuildProgress


@contextmanager
def shown_progress(what: str) -> Iterator[BuildProgress]:
    """Show the progress of one piece of work on standard error.

    Args:
        what: Name of the work, shown before each phase.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console, what)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def show(phase: str, done: float | None = None) -> None:
            bars.update(task, description=f"{what}: {phase}", completed=done or 0.0, total=done and 1.0)

        yield show


def _lines(console: Console, what: str) -> BuildProgress:
    last = ""

    def show(phase: str, done: float | None = None) -> None:
        del done
        nonlocal last
        if phase != last:
            last = phase
            console.print(f"{what}: {phase}", highlight=False, markup=False)

    return show
