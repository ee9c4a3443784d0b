"""Where things are kept, and the folder of one run.

``<cache>/``                     images and libvirt's capability cache, kept between runs
``<run dir>/kvm-runs/<id>/``     one run: overlays, seeds, keys, sockets, console logs
``…/made-by-pytest-kvm.json``    its marker, locked as long as the run lives
``<run dir>/kvm-runs/guard``     locked while run folders are made and removed
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.host import locks, ownership, watcher

RUNS = "kvm-runs"
"""The folder of runs below the one that the user gives: everything else in there is his."""
LONGEST_RUN_DIR = 32
"""Bytes: below it ``kvm-runs``, the run and libvirt add up to 75 for a monitor socket,
and 107 is the limit of a socket's path (``unix(7)``)."""

_GUARD = "guard"
_RUN = re.compile(r"[0-9a-f]{8}")
_PACKAGES = Path(__file__).parents[2]


@contextmanager
def held_run_folder(parent: Path) -> Iterator[Path]:
    """Make a run's folder, watched and locked while the block runs, gone after it.

    Raises:
        HostError: The parent is too long, not ours, or open to others.
    """
    runs = _private_runs(parent)
    sweep(parent)
    folder = runs / secrets.token_hex(4)
    with _guarded(runs):
        ownership.make(folder)
        lock = locks.try_exclusive(folder / ownership.MARKER)
    if lock is None:
        raise RuntimeError(f"{folder} is new, and somebody holds it")
    try:
        with _watched(folder):
            yield folder
    finally:
        watcher.remove_run(folder)
        lock.release()


def sweep(parent: Path) -> list[Path]:
    """Remove what runs left that nobody could clean up after: a reboot, a killed watcher.

    Only what a run's marker vouches for is removed; see :func:`strangers` for the rest.
    """
    runs = parent / RUNS
    if not os.path.lexists(runs):
        return []
    removed: list[Path] = []
    with _guarded(runs):
        for folder in sorted(runs.iterdir()):
            if _is_dead(folder):
                watcher.remove_run(folder)
                removed.append(folder)
    return removed


def strangers(parent: Path) -> list[Path]:
    """Return what lies among the runs' folders and was not made by a run."""
    runs = parent / RUNS
    if runs.is_symlink():
        return [runs]
    with suppress(FileNotFoundError):
        return [path for path in sorted(runs.iterdir()) if path.name != _GUARD and not _is_a_runs(path)]
    return []


def _is_a_runs(folder: Path) -> bool:
    known = _RUN.fullmatch(folder.name) is not None
    return known and (ownership.is_ours(folder) or ownership.is_blank(folder))


def _is_dead(folder: Path) -> bool:
    """Say whether a folder was a run's that nobody owns any more; with the guard held."""
    if not _is_a_runs(folder):
        return False
    try:
        lock = locks.try_exclusive(folder / ownership.MARKER)
    except FileNotFoundError:
        return ownership.is_blank(folder)  # or its watcher has just removed it
    if lock is None:
        return False  # a live run owns it
    lock.release()
    return True


@contextmanager
def _guarded(runs: Path) -> Iterator[None]:
    """Keep sweeps away from folders that are being made: they have no lock yet."""
    guard = os.open(runs / _GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def _private_runs(parent: Path) -> Path:
    """Return the folder of runs below a parent, both made as far as they are missing."""
    if len(os.fsencode(parent)) > LONGEST_RUN_DIR:
        raise HostError(
            f"the run folder {parent} has a path of more than {LONGEST_RUN_DIR} bytes: sockets would not fit",
            resolution="choose a shorter one with --kvm-run-dir",
        )
    parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (parent, parent / RUNS):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise HostError(
                f"the run folder {folder} is not a folder that only you may enter",
                details=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
                resolution=f"move it away, `chmod 700 {folder}`, or choose another with --kvm-run-dir",
            )
    return parent / RUNS


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Keep a watcher process beside the run."""
    arguments = [str(_PACKAGES), str(folder), str(os.getpid())]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", watcher.BOOTSTRAP, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Not "done" yet: should removal below be killed half-way, the next
        # run's sweep finds the folder, as its lock is free by then.
        process.communicate(b"done")
