"""The clock for a guest's deadlines: it stands still while the host has no processor for the guest."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import psutil

_PROCESSOR = re.compile(r"(?:CPU \d+|ALL CPUs)/")
"""How the names of QEMU's vCPU threads begin (libvirt starts QEMU with ``-name …,debug-threads=on``)."""
_READ_EVERY = 0.25
"""Seconds between two readings of the losses; a reading costs as much as a third of a command."""


class GuestClock:
    """Counts the seconds in which a guest could run.

    Two losses are left out. The first is the time in which the guest's vCPUs
    were ready, but the host did not run them. The second is taken from the
    rest: the share of time that a hypervisor below the host took from the host.
    The losses are not simply added, because time that is stolen while the
    vCPUs wait is already part of their waiting time.

    Between two readings of the losses all seconds count. If there were losses,
    the clock stands still after the next reading until it is right again.

    Args:
        pid: Process id of the guest's QEMU; None if QEMU is not on this host: then all seconds count.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._now = self._told = self._host = time.monotonic()
        self._waited = _Lost(0.0 if pid is None else vcpu_wait_seconds(pid))
        self._stolen = _Lost(steal_seconds())

    def now(self) -> float:
        """Return seconds that only go up, like ``time.monotonic()``."""
        if self._pid is None:
            return time.monotonic()
        with self._lock:
            passed = time.monotonic() - self._host
            if passed >= _READ_EVERY:
                self._host += passed
                waited = self._waited.of(passed, vcpu_wait_seconds(self._pid))
                taken = self._stolen.of(passed, steal_seconds())
                self._now += (passed - waited) * (1 - taken / passed)
                passed = 0.0
            self._told = max(self._told, self._now + passed)
            return self._told


class _Lost:
    """Turns a growing total of lost seconds into the seconds lost in each interval.

    The total grows only when a loss is over, so it may contain losses of
    earlier intervals.

    Args:
        total: The total at the start, in seconds.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._late = 0.0

    def of(self, passed: float, total: float) -> float:
        """Return how many of the ``passed`` seconds count as lost.

        The total may have grown by more than ``passed`` seconds. The excess was
        lost in earlier intervals, which did not count it. Later intervals count
        it instead.
        """
        late = self._late + max(0.0, total - self._total)  # the total shrinks when QEMU has ended
        self._total = max(self._total, total)
        lost = min(late, passed)
        self._late = late - lost
        return lost


def vcpu_wait_seconds(pid: int) -> float:
    """Return for how long a QEMU's guest could not run because others had the host's processors.

    This is the time in which a vCPU thread of QEMU was ready, but not run
    (``/proc/PID/task/TID/schedstat``, the kernel's
    Documentation/scheduler/sched-stats.rst). The vCPU thread that waited
    longest counts.

    Returns:
        Seconds since QEMU started; 0 if the kernel keeps no such statistics.
    """
    return max((_ready(task) for task in Path(f"/proc/{pid}/task").glob("*")), default=0.0)


def steal_seconds() -> float:
    """Return for how long a hypervisor below this host kept it from running (``steal`` in proc_stat(5)).

    Returns:
        Seconds since the host started, as the mean of its processors; 0 on bare metal.
    """
    return float(psutil.cpu_times().steal) / (psutil.cpu_count() or 1)


def _ready(task: Path) -> float:
    try:
        if not _PROCESSOR.match((task / "comm").read_text()):
            return 0.0
        return int((task / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # the thread has ended, or the kernel keeps no such statistics
        return 0.0
