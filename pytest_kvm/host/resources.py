"""Measures what this machine has for guests: memory, processors, disk space.

A container's limits count where they are lower than the machine's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_kvm.host.cgroups import cpu_quotas, memory_groups

_MIB = 1024 * 1024
_BLOCK = 512
"""Bytes of the unit of ``st_blocks``; see stat(2)."""


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


def memory_saved_mib(pid: int) -> int:
    """Return how much (MiB) a snapshot of a QEMU's memory takes at most; 0 if it has ended.

    It is what the process has touched, and what the file holds that it maps as its guest's memory: a
    snapshot has all pages that are not zero, also those that a clone has not touched yet. It is not more
    than that memory, which is the largest mapping.
    """
    with suppress(OSError):
        mappings = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        guest = max(mappings, key=lambda mapping: _length(mapping[0]))
        file = Path(guest[5]) if len(guest) > 5 else None
        held = file.stat().st_blocks * _BLOCK if file is not None and file.is_file() else 0
        return min(memory_touched_mib(pid) + held // _MIB, _length(guest[0]) // _MIB)
    return 0


def _length(addresses: str) -> int:
    begin, _, end = addresses.partition("-")
    return int(end, 16) - int(begin, 16)


def cpus_available() -> int:
    """Return how many processors this process may keep busy, at least 1."""
    cpus = min([float(len(os.sched_getaffinity(0))), *cpu_quotas()])
    return max(1, math.ceil(cpus))


def disk_free_mib(path: Path) -> int:
    """Return the free space (MiB) where a file or folder is, or will be once it is made."""
    found = _file_system_of(path)
    return found.f_bavail * found.f_frsize // _MIB


def files_free(path: Path) -> float:
    """Return how many more files the file system can have where a file or folder is, or will be."""
    found = _file_system_of(path)
    return found.f_favail if found.f_files else math.inf  # without a limit it says 0 of 0


def nearest_existing(path: Path) -> Path:
    """Return a file or folder, or what is there of the folders around it."""
    return next(each for each in (path, *path.parents) if os.access(each, os.F_OK))


def _file_system_of(path: Path) -> os.statvfs_result:
    return os.statvfs(nearest_existing(path))


def disk_taken_below(folder: Path) -> int:
    """Return the bytes of its disk that what is in a folder takes; nothing for what vanishes meanwhile."""
    blocks = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                blocks += Path(parent, name).lstat().st_blocks
    return blocks * _BLOCK


def disk_taken_mib(files: Iterable[Path]) -> int:
    """Return how much (MiB) of their disk files take, which may be less than their size; nothing if gone."""
    blocks = 0
    for file in files:
        with suppress(FileNotFoundError):
            blocks += file.stat().st_blocks
    return blocks * _BLOCK // _MIB
