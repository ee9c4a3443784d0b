"""Control groups with little memory (cgroups(7), both versions); only root makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_kvm.host.cgroups import CGROUPS

_ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
"""Has a process enter a control group before it becomes another program."""


class MemoryGroup:
    """A new control group whose processes may have so many bytes of memory together."""

    def __init__(self, name: str, limit: int) -> None:
        controllers = CGROUPS / "cgroup.controllers"
        version_2 = controllers.exists() and "memory" in controllers.read_text().split()
        top = CGROUPS if version_2 else CGROUPS / "memory"
        self._folder = top / f"pytest-kvm-{name}-{os.getpid()}"
        self._events = self._folder / ("memory.events" if version_2 else "memory.oom_control")
        self._folder.mkdir()
        (self._folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit))

    def python(self, *arguments: str | Path) -> list[str]:
        """Return a command line that runs Python in the group."""
        procs = str(self._folder / "cgroup.procs")
        return [sys.executable, "-c", _ENTER, procs, sys.executable, *map(str, arguments)]

    def run(self, *arguments: str | Path) -> None:
        """Run Python in the group to its end."""
        subprocess.run(self.python(*arguments), check=True)

    @property
    def oom_kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        words = dict(line.split() for line in self._events.read_text().splitlines())
        return int(words["oom_kill"])

    def remove(self) -> None:
        """Remove the group, which has no process any more."""
        self._folder.rmdir()
