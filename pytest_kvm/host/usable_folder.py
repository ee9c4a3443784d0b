"""Makes folders that are missing, and sees that they can be used: written to, and entered by nobody else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.host.disk_space import is_full_disk
from pytest_kvm.host.resources import nearest_existing


def make_writable(folder: Path, *, what: str, flag: str) -> None:
    """Make a folder if it is missing, and make sure that it can be written to.

    Args:
        folder: Missing folders around it are made, too.
        what: What it is, for the message ("the boot cache").
        flag: The option that names another.

    Raises:
        HostError: It cannot be made or written to.
        OSError: The disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        if is_full_disk(failure):
            raise
        raise _unusable(f"{what} {folder} cannot be made: {failure.strerror}", flag=flag) from None
    _check_writable(folder, what=what, flag=flag)


def make_private(folder: Path, *, what: str, flag: str) -> None:
    """Make a folder if it is missing, and make sure that this user may write to it, and nobody else enter.

    Args:
        folder: As for :func:`make_writable`, and the others.
        what: What it is.
        flag: The option that names another.

    Raises:
        HostError: It cannot be made or written to, is no folder, or is open to others.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as failure:
        raise _unusable(f"{what} {folder} cannot be made: {failure.strerror}", flag=flag) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(
            f"{what} {folder} is not a folder that only you may enter",
            details=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
            resolution=f"move it away, `chmod 700 {folder}`, or choose another with {flag}",
        )
    _check_writable(folder, what=what, flag=flag)


def why_not_writable(folder: Path) -> str:
    """Return why a folder, which need not exist yet, cannot be written to; "" if it can."""
    there = nearest_existing(folder)
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    is_read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    return "its file system is read-only" if is_read_only else "permission denied"


def _check_writable(folder: Path, *, what: str, flag: str) -> None:
    if why := why_not_writable(folder):
        raise _unusable(f"{what} {folder} cannot be written to: {why}", flag=flag)


def _unusable(problem: str, *, flag: str) -> HostError:
    return HostError(problem, resolution=f"choose another with {flag}")
