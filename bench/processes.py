"""Processes: one for each run that is measured, and what its QEMUs are at."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import psutil

from pytest_kvm.waiting import NotYet, wait_until

_PATIENCE = 120.0
_IDLE = 0.2
"""Of one processor, for one guest: under TCG its timers take less."""


P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work in a new process: libvirt's embedded driver serves one run in each."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_told, partial(work, *args, **kwargs)).result()


def _told(work: Callable[[], T]) -> T:
    """Tell of a failure in words: an error that takes keywords does not survive pickling."""
    try:
        return work()
    except Exception:  # noqa: BLE001 - told whole, and as one that can travel
        raise RuntimeError(traceback.format_exc()) from None


def qemus() -> list[psutil.Process]:
    """Return the QEMUs that are this process's children: libvirt's embedded driver runs in it."""
    return [each for each in psutil.Process().children() if each.name().startswith("qemu-system")]


def pss_mib(processes: list[psutil.Process]) -> float:
    """Return their proportional set sizes together: a page that several map is shared out among them."""
    return sum(each.memory_full_info().pss for each in processes) / 1024**2


def wait_parked(guests: set[int]) -> None:
    """Wait until a clone is parked for each guest: as many QEMUs besides theirs stand completely still.

    One that is paused takes no processor time at all; one that starts or runs does.

    Args:
        guests: Process ids of the guests' QEMUs.
    """
    load = _Load(lambda: [each for each in qemus() if each.pid not in guests])

    def check() -> None:
        load.check(0.0)
        if load.processes != len(guests):
            raise NotYet(f"{load.processes} of {len(guests)}")

    wait_until(check, describe="parked clones", timeout=_PATIENCE, every=0.4)


def wait_idle() -> None:
    """Wait until the guests have nothing left to do."""
    load = _Load(qemus)
    wait_until(lambda: load.check(_IDLE), describe="the guests to be idle", timeout=_PATIENCE, every=2.0)


@dataclass
class _Load:
    """Compares what processes have used of the processor with the look before."""

    of: Callable[[], list[psutil.Process]]
    _before: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def processes(self) -> int:
        """How many there were at the last look."""
        return len(self._before)

    def check(self, most: float) -> None:
        """Return when no process used more than ``most`` seconds of each second since the last look."""
        now = {each.pid: sum(each.cpu_times()[:2]) for each in self.of()}
        before, self._before = self._before, now
        if not now or now.keys() != before.keys():
            raise NotYet("processes come and go")
        used = sum(now.values()) - sum(before.values())
        if used > most * 2.0 * len(now):
            raise NotYet(f"{used:.1f} s of processor time since the last look")
