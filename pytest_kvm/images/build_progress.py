"""The callback by which a build or an import reports its progress."""

from __future__ import annotations

from typing import Protocol


class BuildProgress(Protocol):
    """Called when a phase begins, and within a phase as it advances."""

    def __call__(self, phase: str, done: float | None, /) -> None:
        """Report the present phase.

        Args:
            phase: What is being done, as a participle ("installing packages").
            done: The part of this phase that is done, 0 to 1; None when unknown.
        """
        ...


def silent(phase: str, done: float | None, /) -> None:
    """Ignore the progress."""
    del phase, done
