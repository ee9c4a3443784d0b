"""A lab of three guests: what a savepoint and a restore of all cost, beside those of the slowest one."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from bench.boot import Quiet
from bench.state_table import Row
from pytest_kvm.handles.guest import Guest
from pytest_kvm.handles.lab import Lab
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.network import NetworkSpec
from pytest_kvm.spec.nic import Nic

SMALL = GuestSpec(memory="512MiB", vcpus=1)
GUESTS = 3
Figures = dict[str, list[float]]
T = TypeVar("T")


def labs(settings: Settings, *, rounds: int) -> Figures:
    """Return ratios of savepoints and restores, and by how many seconds the clocks are apart afterwards."""
    figures: Figures = defaultdict(list)
    run = Run(replace(settings, pool=0), progress=Quiet(), coordinator=ResetCoordinator())
    try:
        segment = run.segments.make("lan", NetworkSpec())
        spec = replace(SMALL, nics=[Nic(segment)])
        guests = [run.start(spec, name=f"guest{number}", resets=False) for number in range(GUESTS)]
        for guest in guests:
            guest.run(["sh", "-c", f"ping -i 0.2 {guests[0].address(segment)} >/dev/null 2>&1 &"])
        for _ in range(rounds):
            _measure(guests, figures)
        return dict(figures)
    finally:
        run.close()


def _measure(guests: Sequence[Guest], figures: Figures) -> None:
    lab = Lab(*guests)
    single = [_timed(guest.savepoint) for guest in guests]
    together = _timed(lab.savepoint)
    figures["take"].append(together[0] / max(seconds for seconds, _ in single))
    back = [_timed(savepoint.restore)[0] for _, savepoint in single]
    figures["restore"].append(_timed(together[1].restore)[0] / max(back))
    figures["clocks"].append(_spread(guests))
    for _, savepoint in [*single, together]:
        savepoint.drop()


def _timed(verb: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    value = verb()
    return time.perf_counter() - began, value


def _spread(guests: Sequence[Guest]) -> float:
    """Return by how many seconds the guests' clocks are apart."""
    ahead = [_ahead(guest) for guest in guests]
    return max(ahead) - min(ahead)


def _ahead(guest: Guest) -> float:
    """Return by how many seconds a guest's clock is ahead of the host's, by the shortest of some looks."""
    looks: list[tuple[float, float]] = []
    for _ in range(7):
        before = time.time()
        told = int(guest.agent.call("guest-get-time")) / 1e9
        after = time.time()
        looks.append((after - before, told - (before + after) / 2))
    return min(looks)[1]


def rows(figures: Figures) -> list[Row]:
    """Return every figure."""
    taken, restored = (statistics.median(figures[what]) for what in ("take", "restore"))
    return [
        Row(name=f"savepoint of {GUESTS} / of the slowest", measured=taken, unit="×", aim=1.5),
        Row(name=f"restore of {GUESTS} / of the slowest", measured=restored, unit="×", aim=1.5),
        Row(name="clocks apart afterwards", measured=max(figures["clocks"]), aim=0.1),
    ]
