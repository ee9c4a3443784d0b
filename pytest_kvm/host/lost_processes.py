"""Finds processes of runs that no run and no watcher ends any more.

A run's processes end with it, or its watcher ends them. If both are gone and
somebody has removed the run's folder, too, nobody knows of a QEMU that still runs.
A switch or a watcher ends by itself, unless somebody has stopped it (``SIGSTOP``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_kvm.errors import HostError
from pytest_kvm.host import run_folder
from pytest_kvm.host.run_token import TOKEN, has_run_ended

_ENDS_WITHIN = 5.0
_RUN = re.compile(rf"/{run_folder.RUNS}/[0-9a-f]{{8}}/")
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


def lost_processes() -> list[LostProcess]:
    """Return the lost processes of this user in this container."""
    found: list[tuple[psutil.Process, list[str]]] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            argv = process.cmdline()
            if argv and _is_ours(process):
                found.append((process, argv))
    watched = {argv[-2] for _, argv in found if _is_watcher(argv) and not _has_ended(argv[-1])}
    lost: list[LostProcess] = []
    for process, argv in found:
        with suppress(psutil.Error, OSError):
            if (what := _what_is_lost(process, argv, watched=watched)) is not None:
                lost.append(LostProcess(what=what[0], why=what[1], process=process))
    return lost


def _what_is_lost(
    process: psutil.Process, argv: list[str], *, watched: Collection[str]
) -> tuple[str, str] | None:
    """Return what a process is and why nobody will end it; None if it is no run's, or somebody will.

    Args:
        process: The process.
        argv: Its command line.
        watched: The folders of runs that live and have a watcher.
    """
    if "qemu" in Path(argv[0]).name:
        folder = next(filter(None, map(_missing_run, argv)), None)
        if folder is not None and folder not in watched:
            return f"a QEMU of the run {Path(folder).name}", f"{folder} is gone"
    elif _is_switch(argv) and _has_ended(argv[-2]):
        return "the switch of a run", f"the run's process {argv[-2].partition(':')[0]} has ended"
    elif _is_stopped_watcher(process, argv) and _has_ended(argv[-1]) and _is_missing(argv[-2]):
        return f"the watcher of the run {Path(argv[-2]).name}", f"it is stopped, and {argv[-2]} is gone"
    return None


def _missing_run(argument: str) -> str | None:
    """Return the run's folder that an argument of QEMU names, if there is no such folder.

    Where a path begins in an argument cannot be told for sure (``path=/a/b=/c``), so
    that no folder may be there for any of the possible beginnings.
    """
    match = _RUN.search(argument)
    if match is None:
        return None
    text = argument[: match.end() - 1]
    slashes = [at for at in range(match.start() + 1) if text[at] == "/"]
    possible = [text[at:] for at in slashes if at == 0 or text[at - 1] in '=:",']
    folders = [folder for path in possible for folder in (path, path.replace(",,", ","))]
    return folders[0] if folders and all(map(_is_missing, folders)) else None


def _is_missing(folder: str) -> bool:
    """Say whether there is certainly no such folder: one that cannot be reached may be there."""
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_watcher(argv: list[str]) -> bool:
    return len(argv) > 7 and _WATCHER in argv[4]


def _is_stopped_watcher(process: psutil.Process, argv: list[str]) -> bool:
    return _is_watcher(argv) and process.status() == psutil.STATUS_STOPPED


def _is_switch(argv: list[str]) -> bool:
    return len(argv) > 7 and _SWITCH in argv[4]


def _has_ended(token: str) -> bool:
    return TOKEN.fullmatch(token) is not None and has_run_ended(token)


def _is_ours(process: psutil.Process) -> bool:
    """Say whether a process is this user's, and means by paths and process ids what this one means."""
    if process.uids().effective != os.geteuid():
        return False
    there, here = Path(f"/proc/{process.pid}"), Path("/proc/self")
    if not os.path.samestat((there / "root").stat(), (here / "root").stat()):
        return False
    spaces = (space for space in ("mnt", "pid", "time") if os.path.lexists(here / "ns" / space))
    return all((there / "ns" / space).readlink() == (here / "ns" / space).readlink() for space in spaces)
