"""Tells whether a kernel that says it was stuck really was, or this host let it wait.

A guest's clock goes on while QEMU gets no processor, and the kernel takes that
for a lockup or a stall of its own (``kernel/watchdog.c``,
``kernel/rcu/tree_stall.h``). The same happens when a savepoint is restored
without KVM: the time stamp counter never goes back (``cpu_get_ticks_locked`` in
QEMU's ``system/cpu-timers.c``), so the guest's clock jumps by all the time since
the savepoint. But a kernel that is stuck spins: it uses as many seconds of
processor time as it says it was stuck.
"""

from __future__ import annotations

import re
import time
from collections import deque
from contextlib import suppress

import psutil

from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.kernel_reports import KernelReport

_SOFT_LOCKUP = re.compile(r"soft lockup - CPU#\d+ stuck for (\d{1,9})s!")
_RCU_STALL = re.compile(r"\bt=(\d{1,9}) jiffies")
_USES_NO_TIME = re.compile(r"Tasks blocked|expedited")
"""A stall whose cause is a task that sleeps, or that does not tell for how long it was."""
_MOST_HZ = 1000
"""Jiffies per second (``CONFIG_HZ``) at most; with fewer, the stall was longer."""
_MOST_NOTES = 100


class ProcessorTime:
    """How much processor time a machine's QEMU has used, and when.

    Args:
        domain: The machine's domain.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._notes: deque[tuple[float, float]] = deque(maxlen=_MOST_NOTES)
        self._at_start = 0.0
        """What QEMU had used when the guest was started, or restored."""

    def restart(self) -> None:
        """Count from now on: the guest was restored, and knows nothing of the time before."""
        self._notes.clear()
        self._at_start = self._seconds_used() or 0.0

    def note(self) -> None:
        """Note what QEMU has used by now; everything that the kernel has printed was read."""
        used = self._seconds_used()
        if used is not None:
            self._notes.append((time.monotonic(), used))

    def excuse(self, report: KernelReport) -> str:
        """Return why the host is to blame for a report that came after the last note; "" if it is not."""
        stuck = _seconds_stuck(report)
        used = self._seconds_used()
        if stuck is None or used is None:
            return ""
        began = (self._notes[-1][0] if self._notes else 0.0) - stuck
        used -= next((before for at, before in reversed(self._notes) if at <= began), self._at_start)
        if used >= stuck:
            return ""
        return (
            f"not the guest's fault: its QEMU had {used:.1f} s of processor time meanwhile, "
            f"and a kernel that is stuck for {stuck:.1f} s uses as many"
        )

    def _seconds_used(self) -> float | None:
        pid = self._domain.pid
        if pid is None:  # on another host
            return None
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            return float(times.user + times.system)
        return None


def _seconds_stuck(report: KernelReport) -> float | None:
    """Return how long the kernel spun at least, by its own words; None if its report says no such thing."""
    if report.kind == "soft lockup" and (found := _SOFT_LOCKUP.search(report.text)):
        return float(found[1])
    if report.kind == "RCU stall" and not _USES_NO_TIME.search(report.text):
        found = _RCU_STALL.search(report.text)
        return None if found is None else int(found[1]) / _MOST_HZ
    return None
