"""Measures what this machine has for guests: memory, processors, disk space.

A container's limits count where they are lower than the machine's.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_kvm.host.cgroups import cpu_quotas, memory_groups

_MIB = 1024 * 1024


def memory_available_mib() -> int:
    """Return how much memory (MiB) guests may take now."""
    left = [group.limit - group.used for group in memory_groups()]
    return max(0, min([psutil.virtual_memory().available, *left]) // _MIB)


def memory_total_mib() -> int:
    """Return how much memory (MiB) there is for all processes together."""
    return min([psutil.virtual_memory().total, *(group.limit for group in memory_groups())]) // _MIB


def memory_touched_mib(pid: int) -> int:
    """Return how much memory (MiB) a process has taken that nobody else can have; 0 if it has ended.

    Pages of files do not count: most of a clone's memory is the RAM file of its template, which all
    clones share (``RssAnon`` of proc_pid_status(5)).
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "RssAnon":
                return int(value.split()[0]) // 1024
    return 0


def cpus_available() -> int:
    """Return how many processors this process may keep busy, at least 1."""
    cpus = min([float(len(os.sched_getaffinity(0))), *cpu_quotas()])
    return max(1, math.ceil(cpus))


def disk_free_mib(folder: Path) -> int:
    """Return the free space (MiB) where ``folder`` is, or will be once it is made."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free // _MIB
