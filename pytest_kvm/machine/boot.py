"""State shared by all readiness checks of one boot: machine, phase times and console watcher."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pytest_kvm.errors import BootFailed, QemuDied
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.watchdog import run_watched

T = TypeVar("T")
_TAIL_LINES = 40
_LINES_AROUND = (30, 10)
"""Console lines that a report shows before and after the line that says what is wrong."""
PhaseListener = Callable[[str, float], None]
"""Called with each phase when it is reached, and with the seconds since power on."""


class Phases:
    """Stopwatch of one boot: when each phase was reached. The first is ``power_on``, at zero.

    Args:
        log: Gets one line per phase.
        listener: Gets the same as values, for a terminal's live line.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        listener: PhaseListener = lambda _phase, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._listener = listener
        self._clock = clock
        self._start = clock()
        self._reached: dict[str, float] = {"power_on": 0.0}

    def of_next_boot(self) -> Phases:
        """Return the stopwatch of another boot, which begins now and tells the same log and listener."""
        return Phases(self._log, listener=self._listener, clock=self._clock)

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
        """Return the phases on one line, and at its end the seconds since power on."""
        parts = [f"{name.replace('_', ' ')} {at:.1f} s" for name, at in self._reached.items()]
        return f"boot phases: {', '.join(parts)}; now {self.elapsed():.1f} s"


@dataclass(frozen=True, kw_only=True)
class Boot:
    """A boot in progress.

    Args:
        machine: The guest that boots.
        phases: Stopwatch of the boot.
        watch: Searches the guest's console from this boot's first byte for symptoms.
    """

    machine: Machine
    phases: Phases
    watch: ConsoleWatch

    def check(self) -> None:
        """Check that the guest can still become ready.

        Raises:
            QemuDied: QEMU ended.
            BootFailed: The console shows one of the known symptoms.
        """
        found = self.watch.look()
        if found is not None:
            symptom = found.symptom
            what = f"{symptom.says}: {found.line}"
            raise self.failure(symptom.error, what, resolution=symptom.resolution, around=found.last_line)
        if not self.machine.domain.alive():
            raise self.failure(
                QemuDied,
                f"QEMU ended while the guest was booting: {self.machine.domain.end_reason()}",
                resolution="a guest that powers itself off while booting looks the same: see the console",
            )

    def failure(
        self, error: type[BootFailed], what: str, *, details: str = "", resolution: str = "", around: str = ""
    ) -> BootFailed:
        """Return the error for a failed boot: its phases, how long the host held the guest up, its console.

        Args:
            error: The error's class.
            what: What is wrong, on one line.
            details: Facts to show between the phases and the console.
            resolution: What the reader can do about it.
            around: A line of the console to show with its neighbours; "": show the last lines.
        """
        name = self.machine.name
        parts = [self.phases.describe(), self._held_up(), details.rstrip("\n"), self._console(around)]
        return error(
            f"{name}: {what.removeprefix(f'{name}: ')}",
            details="\n".join(part for part in parts if part),
            resolution=resolution,
        )

    def _held_up(self) -> str:
        """Say how long the host had no processor for the guest; "" below a second."""
        seconds = time.monotonic() - self.machine.domain.clock()
        return f"for {seconds:.0f} s in all, the host had no processor for the guest" if seconds >= 1 else ""

    def _console(self, around: str) -> str:
        lines = [line for line in self.machine.console.text().splitlines() if line.strip()]
        found = [number for number, line in enumerate(lines) if around and around in line]
        if not found:
            return "\n".join(
                [f"console, last {_TAIL_LINES} lines:", *(lines[-_TAIL_LINES:] or ["(nothing)"])]
            )
        before, after = _LINES_AROUND
        shown = lines[max(0, found[-1] - before) : found[-1] + after + 1]
        return "\n".join([f"console, line {found[-1] + 1} of {len(lines)} and those around it:", *shown])

    def run_watched(self, call: Callable[[], T]) -> T:
        """Run a blocking call, and stop it as soon as the boot has failed."""
        return run_watched(call, check=self.check, abandon=self.machine.shell.close)
