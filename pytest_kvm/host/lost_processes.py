"""Finds processes of runs that no run and no watcher ends any more.

A run's processes end with it, or its watcher ends them. If both are gone and
somebody has removed the run's folder, too, nobody knows of a QEMU that still runs.
A switch or a watcher ends by itself, unless somebody has stopped it (``SIGSTOP``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_kvm.errors import HostError
from pytest_kvm.host.run_token import TOKEN, has_run_ended

_ENDS_WITHIN = 5.0
_QEMU = re.compile(r"(/[^,=]*/kvm-runs/[0-9a-f]{8})/")
_SWITCH = "from pytest_kvm.switch.server import main"
_WATCHER = "from pytest_kvm.host.watcher import main"


@dataclass(frozen=True, kw_only=True)
class LostProcess:
    """A process that nobody will end."""

    what: str
    why: str
    process: psutil.Process

    def end(self) -> None:
        """Kill it, and wait until it is gone.

        Raises:
            HostError: It cannot be killed.
        """
        try:
            self.process.kill()
            self.process.wait(_ENDS_WITHIN)
        except psutil.NoSuchProcess:
            return
        except (psutil.AccessDenied, psutil.TimeoutExpired) as failure:
            raise HostError(f"cannot end {self.what}, process {self.process.pid}: {failure}") from None


def lost_processes() -> Iterator[LostProcess]:
    """Yield the lost processes of this user in this container."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found = _what_is_lost(process, process.cmdline())
            if found is not None and _is_ours(process):
                yield LostProcess(what=found[0], why=found[1], process=process)


def _what_is_lost(process: psutil.Process, argv: list[str]) -> tuple[str, str] | None:
    """Return what a process is and why nobody will end it; None if it is no run's, or somebody will."""
    if not argv:
        return None
    if "qemu" in Path(argv[0]).name:
        folders = [match[1] for argument in argv if (match := _QEMU.search(argument))]
        if folders and not os.path.lexists(folders[0]):
            return f"a QEMU of the run {Path(folders[0]).name}", f"{folders[0]} is gone"
    program = " ".join(argv[1:5])
    if _SWITCH in program and TOKEN.fullmatch(argv[-2]) and has_run_ended(argv[-2]):
        return "the switch of a run", f"the run's process {argv[-2].partition(':')[0]} has ended"
    if _WATCHER in program and process.status() == psutil.STATUS_STOPPED and not os.path.lexists(argv[-2]):
        return f"the watcher of the run {Path(argv[-2]).name}", f"it is stopped, and {argv[-2]} is gone"
    return None


def _is_ours(process: psutil.Process) -> bool:
    """Say whether a process is this user's, and means by paths and process ids what this one means."""
    if process.uids().effective != os.geteuid():
        return False
    spaces = ("mnt", "pid")
    return all(
        Path(f"/proc/{process.pid}/ns/{space}").readlink() == Path(f"/proc/self/ns/{space}").readlink()
        for space in spaces
    )
