"""Many clones of one template at once: time and memory of each."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import psutil

from bench.processes import pss_mib, qemus, wait_idle
from pytest_kvm.provision.run import Run
from pytest_kvm.spec.guest import GuestSpec


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What so many clones cost."""

    clones: int
    seconds: float
    """From the request of the first until all are ready."""
    available_mib: float
    """How much less memory the kernel calls available once all are idle."""
    pss_mib: float
    teardown: float
    """Seconds until all are removed."""

    @property
    def each(self) -> float:
        """Seconds by clones."""
        return self.seconds / self.clones


def crowd(run: Run, spec: GuestSpec, *, clones: int) -> Crowd:
    """Start clones all at once, let them come to rest, and remove them."""
    before = psutil.virtual_memory().available
    began = time.perf_counter()
    guests = [run.start(spec, name=f"crowd-{number}", resets=False) for number in range(clones)]
    for guest in guests:
        guest.wait_ready()
    seconds = time.perf_counter() - began
    for guest in guests:
        guest.agent.ping()
    wait_idle()
    gone = before - psutil.virtual_memory().available
    pss = pss_mib(qemus())
    began = time.perf_counter()
    run.remove(*guests)
    return Crowd(
        clones=clones,
        seconds=seconds,
        available_mib=gone / 1024**2,
        pss_mib=pss,
        teardown=time.perf_counter() - began,
    )


def slope(crowds: list[Crowd]) -> float:
    """Return the seconds that one clone more takes, fitted from two clones on."""
    several = [each for each in crowds if each.clones > 1]
    fit = statistics.linear_regression([each.clones for each in several], [each.seconds for each in several])
    return fit.slope
