"""Where things are kept, and the folder of one run.

``<cache>/``            images and libvirt's capability cache, kept between runs
``<run dir>/<id>/``     one run: overlays, seeds, keys, sockets, console logs
``<run dir>/<id>/lock`` held as long as the run lives
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.host import watcher

LONGEST_RUN_DIR = 41
"""Bytes: below it the run and libvirt add up to 66 for a monitor socket, and 107
is the limit of a socket's path (``unix(7)``)."""


@contextmanager
def held_run_folder(parent: Path) -> Iterator[Path]:
    """Make a run's folder, watched and locked while the block runs, gone after it.

    Raises:
        HostError: The parent is too long, not ours, or open to others.
    """
    _make_private(parent)
    sweep(parent)
    folder = parent / secrets.token_hex(4)
    with _guarded(parent):
        folder.mkdir(mode=0o700)
        lock = _locked(folder / "lock")
    try:
        with _watched(folder):
            yield folder
    finally:
        watcher.remove_run(folder)
        os.close(lock)


def sweep(parent: Path) -> list[Path]:
    """Remove what runs left that nobody could clean up after: a reboot, a killed watcher."""
    removed: list[Path] = []
    with _guarded(parent):
        for folder in parent.iterdir():
            if folder.is_symlink() or not folder.is_dir():
                continue
            try:
                lock = _locked(folder / "lock")
            except (BlockingIOError, FileNotFoundError):
                continue  # a live run owns it, or a watcher has just removed it
            try:
                watcher.remove_run(folder)
                removed.append(folder)
            finally:
                os.close(lock)
    return removed


@contextmanager
def _guarded(parent: Path) -> Iterator[None]:
    """Keep sweeps away from folders that are being made: they have no lock yet."""
    guard = os.open(parent / "guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def _locked(path: Path) -> int:
    """Lock a file for this process's life; raise BlockingIOError when somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_private(parent: Path) -> None:
    if len(os.fsencode(parent)) > LONGEST_RUN_DIR:
        raise HostError(
            f"the run folder {parent} has a path of more than {LONGEST_RUN_DIR} bytes: sockets would not fit",
            resolution="choose a shorter one with --kvm-run-dir",
        )
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(
            f"the run folder {parent} is not a folder that only you may enter",
            details=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
            resolution=f"remove it, `chmod 700 {parent}`, or choose another with --kvm-run-dir",
        )


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Keep a watcher process beside the run."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", watcher.__file__, str(folder), str(os.getpid())],
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
