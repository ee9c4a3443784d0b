"""Makes the folder of a run, and removes the folders of dead runs.

Where files are kept:

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
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_kvm.errors import HostError
from pytest_kvm.host import folder_marker, locks, mounts, watcher
from pytest_kvm.host.run_token import new_run_token
from pytest_kvm.host.usable_folder import make_private
from pytest_kvm.waiting import NotYet, wait_until

RUNS = "kvm-runs"
"""The folder of all runs, below the folder that the user gives. All else in that folder is the user's."""
LONGEST_RUN_DIR = 32
"""Bytes that the path of the user's folder may have. Below it, ``kvm-runs``, the run's
name and libvirt's names add up to 75 bytes for a monitor socket, and a socket's path
may have 107 (``unix(7)``)."""

_GUARD = "guard"
_FAREWELL_WITHIN = 10.0
"""Seconds that a watcher has to end when its run does."""
_RUN = re.compile(r"[0-9a-f]{8}")
_PACKAGES = Path(__file__).parents[2]


@contextmanager
def held_run_folder(parent: Path, *, token: str | None = None, **facts: str) -> Iterator[Path]:
    """Make a run's folder, keep it watched and locked while the block runs, then remove it.

    Args:
        parent: The folder that the user gives.
        token: The run's token; None: a new one.
        facts: What the folder's marker says of the run, for those who look from outside.

    Raises:
        HostError: The parent's path is too long, or the parent is not ours or open to others.
    """
    runs = _private_runs(parent)
    sweep(parent)
    folder, token = runs / secrets.token_hex(4), token or new_run_token()
    with _guarded(runs):
        folder_marker.make(folder, token=token, **host_facts(), **facts)
        lock = locks.try_exclusive(folder / folder_marker.MARKER)
    if lock is None:
        raise RuntimeError(f"{folder} is new, and somebody holds it")
    try:
        with _watched(folder, token):
            yield folder
    finally:
        watcher.remove_run(folder, token=token)
        lock.release()


def check_is_there(folder: Path) -> None:
    """Check that nobody has removed a run's folder while the run goes on.

    Raises:
        HostError: Somebody has.
    """
    if not os.path.lexists(folder / folder_marker.MARKER):  # libvirt makes the folder anew, without one
        raise folder_gone(f"the folder of this run, {folder}, or a part of it")


def folder_gone(what: str) -> HostError:
    """Return the error that something in the run folder is gone.

    Args:
        what: Begins the sentence.
    """
    return HostError(
        f"{what} is gone: somebody has removed it",
        resolution="exclude it from what cleans up on this host, or choose another with --kvm-run-dir",
    )


def host_facts() -> dict[str, str]:
    """Return what a marker says of its time and place: host, boot, seconds since that, process namespace."""
    return {
        "host": os.uname().nodename,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "since": f"{time.clock_gettime(time.CLOCK_BOOTTIME):.1f}",
        "processes": str(Path("/proc/self/ns/pid").readlink()),
    }


def sweep(parent: Path) -> list[Path]:
    """Remove the folders that dead runs left, and return them.

    A folder is left after a reboot, or when the run's watcher was killed, too. It stays
    if something that its run has made outside of it cannot be undone, or if it may
    be another host's, whose locks and processes cannot be seen from here.
    Only folders with a run's marker, and blank ones, are removed;
    :func:`foreign_files` returns what no run made.
    """
    runs = parent / RUNS
    if not os.path.lexists(runs):
        return []
    with ExitStack() as locks_of_the_dead:
        dead: list[Path] = []
        blank: list[Path] = []
        with _guarded(runs):
            for folder in filter(_belongs_to_a_run, sorted(runs.iterdir())):
                try:
                    lock = locks.try_exclusive(folder / folder_marker.MARKER)
                except FileNotFoundError:
                    # If it is not blank, its watcher has just removed it. Another host may be making it.
                    if folder_marker.is_blank(folder) and not mounts.is_shared(runs):
                        watcher.remove_run(folder)
                        blank.append(folder)
                    continue
                if lock is not None:  # else a live run owns it
                    locks_of_the_dead.callback(lock.release)
                    if not may_be_of_another_host(folder, folder_marker.marker_of(folder) or {}):
                        dead.append(folder)
        # Not under the guard, where others would wait: to undo what a run has made can take a while.
        for folder in dead:
            watcher.remove_run(folder)
    return [folder for folder in sorted([*blank, *dead]) if not os.path.lexists(folder)]


def may_be_of_another_host(folder: Path, about: Mapping[str, Any]) -> bool:
    """Say whether a run's folder whose lock is free may be in use by another host.

    Args:
        folder: The folder.
        about: What its marker says.
    """
    return about.get("boot") != host_facts()["boot"] and mounts.is_shared(folder)


def lock_states(parent: Path, *, timeout: float) -> dict[Path, bool]:
    """Return the folders of runs, each with whether it is locked; nothing is made or removed.

    Args:
        parent: The folder that the user gives.
        timeout: Seconds to wait for another process that makes or removes run folders.

    Raises:
        OSError: This user may not look into the folder.
        WaitTimeout: Another process keeps the folder locked.
    """
    runs = parent / RUNS
    try:
        if not stat.S_ISDIR(runs.lstat().st_mode):
            return {}
    except FileNotFoundError:
        return {}  # there has never been a run
    found: dict[Path, bool] = {}
    with _guard_if_any(runs, timeout=timeout):
        for folder in runs.iterdir():
            with suppress(OSError):  # the run has just removed it, or it is no run's
                if _RUN.fullmatch(folder.name):
                    found[folder] = _is_locked(folder / folder_marker.MARKER)
    return found


@contextmanager
def _guard_if_any(runs: Path, *, timeout: float) -> Iterator[None]:
    """Hold the guard while somebody only looks; it is not made, as its user could not open it then."""

    def lock() -> locks.HeldLock:
        guard = locks.try_exclusive(runs / _GUARD)
        if guard is None:
            raise NotYet("another process makes or removes run folders")
        return guard

    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            guard = wait_until(lock, describe=f"the lock of {runs}", timeout=timeout, every=0.02)
            stack.callback(guard.release)
        yield


def _is_locked(marker: Path) -> bool:
    lock = locks.try_exclusive(marker)
    if lock is not None:
        lock.release()
    return lock is None


def foreign_files(parent: Path) -> list[Path]:
    """Return the files and folders among the runs' folders that no run made."""
    runs = parent / RUNS
    if runs.is_symlink():
        return [runs]
    with suppress(FileNotFoundError):
        return [
            path for path in sorted(runs.iterdir()) if path.name != _GUARD and not _belongs_to_a_run(path)
        ]
    return []


def _belongs_to_a_run(folder: Path) -> bool:
    known = _RUN.fullmatch(folder.name) is not None
    return known and (folder_marker.is_ours(folder) or folder_marker.is_blank(folder))


@contextmanager
def _guarded(runs: Path) -> Iterator[None]:
    """Hold the guard, so that no sweep removes a folder that is being made and has no lock yet."""
    guard = os.open(runs / _GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def _private_runs(parent: Path) -> Path:
    """Return the folder of runs below a parent; make either if it is missing."""
    if len(os.fsencode(parent)) > LONGEST_RUN_DIR:
        raise HostError(
            f"the run folder {parent} has a path of more than {LONGEST_RUN_DIR} bytes: sockets would not fit",
            resolution="choose a shorter one with --kvm-run-dir",
        )
    for folder in (parent, parent / RUNS):
        make_private(folder, what="the run folder", flag="--kvm-run-dir")
    return parent / RUNS


@contextmanager
def _watched(folder: Path, token: str) -> Iterator[None]:
    """Let a watcher process run while the block runs."""
    arguments = [str(_PACKAGES), str(folder), token]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", watcher.BOOTSTRAP, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # it writes nothing there: the pipe closes as soon as it has ended
        start_new_session=True,
    )
    try:
        yield
    finally:
        # The folder is removed only after this. If that removal is killed
        # half-way, the next run's sweep removes it, as its lock is free by then.
        try:
            process.communicate(b"done", timeout=_FAREWELL_WITHIN)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            process.kill()
            process.communicate()
