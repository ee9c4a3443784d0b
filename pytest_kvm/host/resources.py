"""Measures what this machine has for guests: memory, processors, disk space.

A container's limits count where they are lower than the machine's
(https://docs.kernel.org/admin-guide/cgroup-v2.html).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_MIB = 1024 * 1024
_CGROUPS = Path("/sys/fs/cgroup")


def memory_available_mib(cgroups: Path = _CGROUPS) -> int:
    """Return how much memory (MiB) guests may take now."""
    available = psutil.virtual_memory().available
    for folder in _own_cgroups(cgroups):
        with suppress(OSError, ValueError):  # no such controller, or "max": no limit
            limit = int((folder / "memory.max").read_text())
            available = min(available, limit - _memory_used(folder))
    return max(0, available // _MIB)


def _memory_used(cgroup: Path) -> int:
    """Return the bytes that a cgroup holds, without cached files that were not used lately.

    The kernel frees those files before it refuses memory. They have to be left
    out because reading and writing images fills a container's limit with them.
    """
    cached = 0
    with suppress(OSError):
        for line in (cgroup / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                cached = int(value)
    return int((cgroup / "memory.current").read_text()) - cached


def memory_total_mib(cgroups: Path = _CGROUPS) -> int:
    """Return how much memory (MiB) there is for all processes together."""
    total = psutil.virtual_memory().total
    for folder in _own_cgroups(cgroups):
        with suppress(OSError, ValueError):
            total = min(total, int((folder / "memory.max").read_text()))
    return total // _MIB


def cpus_available(cgroups: Path = _CGROUPS) -> int:
    """Return how many processors this process may keep busy, at least 1."""
    cpus = float(len(os.sched_getaffinity(0)))
    for folder in _own_cgroups(cgroups):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cpus = min(cpus, int(quota) / int(period))
    return max(1, math.ceil(cpus))


def disk_free_mib(folder: Path) -> int:
    """Return the free space (MiB) where ``folder`` is, or will be once it is made."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free // _MIB


def _own_cgroups(cgroups: Path) -> Iterator[Path]:
    """Yield this process's cgroup and those around it: each may set a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = cgroups / own
    while folder.is_relative_to(cgroups):
        yield folder
        folder = folder.parent
