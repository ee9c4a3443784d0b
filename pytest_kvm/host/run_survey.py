"""Looks at the runs of this host from outside: what runs, what for, and what it takes."""

from __future__ import annotations

import math
import os
import pwd
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pytest_kvm.errors import WaitTimeout
from pytest_kvm.host import folder_marker, run_folder, watcher
from pytest_kvm.host.run_records import (
    MACHINE,
    CurrentTest,
    MachineRecord,
    read_machine,
    read_test,
    seconds_since,
)
from pytest_kvm.host.run_token import has_run_ended

_DEFAULT_PARENTS = Path("/var/tmp")  # noqa: S108 - looked at, not written to
_DEFAULT_NAME = re.compile(r"pytest-kvm-(\d+)")
_WITHIN = 5.0
"""Seconds that all run folders together may be locked by others: they are for milliseconds."""
_WATCHER = re.compile(
    rb"from pytest_kvm\.host\.watcher import main[^\0]*\0[^\0]*\0(/[^\0]*)\0"
    rb"\d+:\d+:[0-9a-f]+\0"
)
"""The command line of a run's watcher, with the run's folder."""


@dataclass(frozen=True, kw_only=True)
class SeenMachine:
    """One machine of a run."""

    folder: Path
    record: MachineRecord
    process: psutil.Process | None
    """Its QEMU; None if it is off, or cannot be seen from here."""


@dataclass(frozen=True, kw_only=True)
class SeenRun:
    """One run, or what one has left."""

    folder: Path
    owner: int
    """Id of its user."""
    is_live: bool
    """Whether it has not ended, as far as this host can tell."""
    is_visible: bool
    """Whether its processes can be seen from here: those of another container cannot."""
    about: dict[str, Any]
    """What its marker says: ``pid``, ``time``, ``command``, ``started_in``, ``worker``, ``uri`` and more."""
    current: CurrentTest | None
    machines: tuple[SeenMachine, ...]

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @property
    def may_be_elsewhere(self) -> bool:
        """Whether it may be a run of another host, whose locks cannot be seen from here."""
        return run_folder.may_be_of_another_host(self.folder, self.about)

    @property
    def seconds(self) -> float | None:
        """How long ago it began; None if that was before the last boot of this host."""
        if self.about.get("boot") != run_folder.host_facts()["boot"]:
            return None
        with suppress(TypeError, ValueError, LookupError):
            since = float(self.about["since"])
            return seconds_since(since) if math.isfinite(since) else None
        return None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All runs that this user may see."""

    runs: tuple[SeenRun, ...]
    closed: Mapping[Path, str]
    """Run folders that cannot be looked into, each with the reason."""


def survey(parent: Path) -> Survey:
    """Look at all run folders of this host: one that is given, the users' default ones, those in use.

    Args:
        parent: The run folder of the settings.
    """
    runs: list[SeenRun] = []
    closed: dict[Path, str] = {}
    deadline = time.monotonic() + _WITHIN
    for each in _parents(parent):
        try:
            runs += _runs_in(each, timeout=max(0.1, deadline - time.monotonic()))
        except OSError as refusal:
            closed[each] = refusal.strerror or str(refusal)
        except WaitTimeout as failure:
            closed[each] = failure.brief
    return Survey(runs=tuple(runs), closed=closed)


def user_name(user: int) -> str:
    """Return a user's name, or the id if the user has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _parents(parent: Path) -> list[Path]:
    found = [parent, *filter(_is_default_of_its_owner, sorted(_DEFAULT_PARENTS.glob("pytest-kvm-*")))]
    for _, arguments in watcher.command_lines().values():
        if (run := _WATCHER.search(arguments)) is not None:
            found.append(Path(os.fsdecode(run[1])).parent.parent)
    places: dict[object, Path] = {}
    for each in found:  # some may be the same, by a symbolic link
        try:
            status = (each / run_folder.RUNS).stat()
            places.setdefault((status.st_dev, status.st_ino), each)
        except OSError:
            places.setdefault(each, each)
    return sorted(places.values())


def _is_default_of_its_owner(folder: Path) -> bool:
    match = _DEFAULT_NAME.fullmatch(folder.name)
    with suppress(OSError):
        return match is not None and folder.lstat().st_uid == int(match[1])
    return False


def _runs_in(parent: Path, *, timeout: float) -> Iterator[SeenRun]:
    """Yield the runs below one run folder.

    Args:
        parent: The folder.
        timeout: Seconds to wait if another process keeps it locked.

    Raises:
        OSError: This user may not look into it.
        WaitTimeout: Another process keeps it locked.
    """
    found = run_folder.lock_states(parent, timeout=timeout)
    ours = run_folder.host_facts()["processes"]
    qemus = {pid: line for pid, line in watcher.command_lines().items() if b"qemu" in line[0]}
    for folder, is_locked in sorted(found.items()):
        with suppress(FileNotFoundError):  # the run has removed it since
            owner = folder.lstat().st_uid
            about = folder_marker.marker_of(folder, owner=owner)
            if about is not None:
                is_visible = about.get("processes", ours) == ours
                # Whoever removes what a dead run left has it locked, too.
                is_dead = not is_locked or (is_visible and _has_ended(about.get("token")))
                yield SeenRun(
                    folder=folder,
                    owner=owner,
                    is_live=not is_dead,
                    is_visible=is_visible,
                    about=about,
                    current=read_test(folder, owner=owner),
                    machines=tuple(_machines_in(folder, owner=owner, qemus=qemus)),
                )


def _has_ended(token: object) -> bool:
    with suppress(OSError, ValueError):
        return isinstance(token, str) and has_run_ended(token)
    return False


def _machines_in(run: Path, *, owner: int, qemus: dict[int, tuple[bytes, bytes]]) -> Iterator[SeenMachine]:
    for path in sorted(run.glob(f"*/{MACHINE}")):
        folder = path.parent
        record = read_machine(folder, owner=owner)
        if record is not None:
            needle = os.fsencode(f"/{run.parent.name}/{run.name}/{folder.name}/")
            pids = [pid for pid, (_, arguments) in qemus.items() if needle in arguments]
            yield SeenMachine(folder=folder, record=record, process=_process(pids))


def _process(pids: list[int]) -> psutil.Process | None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid)
    return None
