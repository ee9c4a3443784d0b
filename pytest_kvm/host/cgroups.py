"""The limits of the control groups that this process is in (cgroups(7)).

A container's limits are those of its control group. Both versions are read: hosts
of some years ago have version 1, and a few have both, each with some controllers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class MemoryGroup(NamedTuple):
    """A control group that limits memory."""

    limit: int
    """Bytes; a number greater than any machine's memory if it sets none."""
    used: int
    """Bytes, without cached files that were not used lately: the kernel frees those before it refuses memory.

    They have to be left out because reading and writing images fills a container's limit with them.
    """


def memory_groups(root: Path = CGROUPS, own: Path = _OWN) -> Iterator[MemoryGroup]:
    """Yield the groups that limit this process's memory: its own, and those around it."""
    # https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
    for folder in _folders(root, own, "memory"):
        if (folder / "memory.limit_in_bytes").exists():  # version 1
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            files = ("memory.max", "memory.current", "inactive_file")
        with suppress(OSError, ValueError):  # the root has no limit, and "max" is none
            limit = int((folder / files[0]).read_text())
            used = int((folder / files[1]).read_text()) - _stat(folder / "memory.stat", files[2])
            yield MemoryGroup(limit, used)


def cpu_quotas(root: Path = CGROUPS, own: Path = _OWN) -> Iterator[float]:
    """Yield how many processors this process's groups may keep busy, for each group that limits them."""
    # https://docs.kernel.org/scheduler/sched-bwc.html
    for folder in _folders(root, own, "cpu"):
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:  # -1: no limit
                yield int(quota) / int(period)


def own_groups(root: Path = CGROUPS, own: Path = _OWN) -> Iterator[Path]:
    """Yield the folders of this process's groups of version 2, the innermost first."""
    yield from _folders(root, own, "")


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups that may have a controller, the innermost first."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":  # version 2; where both are used, it is beside the folders of version 1
            top = next((each for each in (root / "unified", root) if each.is_dir()), root)
        elif controller and controller in controllers.split(","):
            top = root / controller
        else:
            continue
        # In a container the path may be the host's, and not be there. Then the top is the container's group.
        folder = top / path.lstrip("/")
        while folder.is_relative_to(top):
            yield folder
            folder = folder.parent


def _stat(path: Path, name: str) -> int:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
