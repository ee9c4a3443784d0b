"""How slow work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called when a phase begins, and within a phase as it advances."""

    def __call__(self, phase: str, done: float | None, /) -> None:
        """Say what happens now.

        Args:
            phase: What is being done, as a participle ("installing packages").
            done: The part of this phase that is done, 0 to 1; None when unknown.
        """
        ...


def silent(phase: str, done: float | None, /) -> None:
    """Tell nobody."""
    del phase, done
