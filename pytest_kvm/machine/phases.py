"""When a boot reached which rung: for the log, for reports and for the benchmark."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

Listener = Callable[[str, float], None]
"""Told each phase as it is reached, with the seconds since power on."""


class Phases:
    """Stop watch of one boot; the first phase is ``power_on``, at zero.

    Args:
        log: Gets one line per phase.
        listener: Gets the same as values; a terminal's live line.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        listener: Listener = lambda _phase, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._listener = listener
        self._clock = clock
        self._start = clock()
        self._reached: dict[str, float] = {"power_on": 0.0}

    def reached(self, phase: str) -> None:
        """Note that ``phase`` was reached now; only the first time counts."""
        if phase in self._reached:
            return
        seconds = self._reached[phase] = self.elapsed()
        self._log.info("%s after %.1f s", phase.replace("_", " "), seconds)
        self._listener(phase, seconds)

    def elapsed(self) -> float:
        """Return the seconds since power on."""
        return self._clock() - self._start

    def seconds(self) -> dict[str, float]:
        """Return each phase with its seconds since power on, in order."""
        return dict(self._reached)

    def describe(self) -> str:
        """Return the phases on one line, the running time last."""
        parts = [f"{name.replace('_', ' ')} {at:.1f} s" for name, at in self._reached.items()]
        return f"boot phases: {', '.join(parts)}; now {self.elapsed():.1f} s"
