"""Runs actions at a later moment, in order."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

Action = Callable[[], None]


class Schedule:
    """Actions by the moment they are due (seconds, monotonic)."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()

    def at(self, moment: float, action: Action) -> None:
        """Schedule an action for a moment; actions for the same moment keep their order."""
        heapq.heappush(self._due, (moment, next(self._numbers), action))

    def wait(self) -> float | None:
        """Return the seconds until the next action is due; None if no action is scheduled."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def run(self) -> None:
        """Run all actions that are due."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
