"""What is to happen later, in order."""

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
        """Have something done at a moment; what is due at the same one keeps its order."""
        heapq.heappush(self._due, (moment, next(self._numbers), action))

    def wait(self) -> float | None:
        """Return the seconds until something is due; None if nothing is."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def run(self) -> None:
        """Do all that is due."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
