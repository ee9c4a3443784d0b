"""The clock of a guest's deadlines: what the host gives to others takes nothing from them."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import psutil

_PROCESSOR = re.compile(r"(?:CPU \d+|ALL CPUs)/")
"""What QEMU calls the threads of its guest's processors (``-name …,debug-threads=on``, as libvirt has it)."""


class GuestClock:
    """Counts the seconds that pass while a guest can go on.

    The time is left out in which the guest's processors were ready and not
    run, and of the rest the part that a hypervisor below took from the host.
    (Not the sum of both: what is stolen while they wait is in their waiting.)

    Args:
        pid: The guest's QEMU; None if it is not on this host: then all seconds count.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._now = self._host = time.monotonic()
        self._waited = _Lost(0.0 if pid is None else held_up(pid))
        self._stolen = _Lost(stolen())

    def now(self) -> float:
        """Return seconds that only go up, like ``time.monotonic()``."""
        if self._pid is None:
            return time.monotonic()
        with self._lock:
            host = time.monotonic()
            passed, self._host = host - self._host, host
            waited = self._waited.of(passed, held_up(self._pid))
            taken = self._stolen.of(passed, stolen())
            if passed > 0:
                self._now += (passed - waited) * (1 - taken / passed)
            return self._now


class _Lost:
    """Lost seconds of which a total is known, and that only when the loss is over.

    Args:
        total: What was lost before.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._late = 0.0

    def of(self, passed: float, total: float) -> float:
        """Return how many of the seconds that have passed were lost.

        What is lost beyond them was lost before, and taken for time that had
        passed: it is made up for by the seconds to come.
        """
        late = self._late + max(0.0, total - self._total)  # less, of a QEMU that has ended
        self._total = max(self._total, total)
        lost = min(late, passed)
        self._late = late - lost
        return lost


def held_up(pid: int) -> float:
    """Return for how long a QEMU's guest could not go on because others had the host's processors.

    That is the time that the threads of its processors were ready and not run
    (``/proc/PID/task/TID/schedstat``, the kernel's
    Documentation/scheduler/sched-stats.rst); of several the one that waited longest.

    Returns:
        Seconds since QEMU started; 0 where the kernel does not tell.
    """
    return max((_ready(task) for task in Path(f"/proc/{pid}/task").glob("*")), default=0.0)


def stolen() -> float:
    """Return for how long a hypervisor below this machine kept it from running (``steal`` in proc_stat(5)).

    Returns:
        Seconds since the machine started, the mean of its processors; 0 on bare metal.
    """
    return float(psutil.cpu_times().steal) / (psutil.cpu_count() or 1)


def _ready(task: Path) -> float:
    try:
        if not _PROCESSOR.match((task / "comm").read_text()):
            return 0.0
        return int((task / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or the kernel keeps no such statistics
        return 0.0
