"""The QEMU process of a domain: finding it, and what the host gives it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_kvm.host.reaping import HostProcess

_PROCESSOR = re.compile(r"(?:CPU \d+|ALL CPUs)/")
"""What QEMU calls the threads of its guest's processors (``-name …,debug-threads=on``, as libvirt has it)."""


def held_up(pid: int) -> float:
    """Return for how long a QEMU's guest could not go on because the host's processors were busy.

    That is the time its processors' threads were runnable and not run
    (``/proc/PID/task/TID/schedstat``, the kernel's
    Documentation/scheduler/sched-stats.rst); of several the one that waited longest.

    Returns:
        Seconds since QEMU started; 0 where the kernel does not tell.
    """
    return max((_runnable(task) for task in Path(f"/proc/{pid}/task").glob("*")), default=0.0)


def stolen() -> float:
    """Return for how long a hypervisor below this machine kept it from running (``steal`` in proc_stat(5)).

    Returns:
        Seconds since the machine started, the mean of its processors; 0 on bare metal.
    """
    return float(psutil.cpu_times().steal) / (psutil.cpu_count() or 1)


def _runnable(task: Path) -> float:
    try:
        if not _PROCESSOR.match((task / "comm").read_text()):
            return 0.0
        return int((task / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or the kernel keeps no such statistics
        return 0.0


def find_qemu(uuid: str) -> HostProcess | None:
    """Return the QEMU that runs a domain, None if it is not on this machine.

    libvirt tells nobody the pid; it does put ``-uuid`` on the command line.
    """
    for process in psutil.process_iter(["cmdline"]):
        arguments: list[str] = process.info["cmdline"] or []
        if uuid in arguments and arguments[arguments.index(uuid) - 1] == "-uuid":
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                return HostProcess(process.pid)
    return None
