"""Folders that can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.host.disk_space import is_full_disk
from pytest_kvm.host.resources import nearest_existing


def make_writable(folder: Path, *, what: str, flag: str) -> None:
    """Make a folder if it is missing, and make sure that it can be written to.

    Args:
        folder: Missing folders around it are made, too.
        what: What it is, for the message ("the cache folder").
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
        raise HostError(
            f"{what} {folder} cannot be made: {failure.strerror}", resolution=f"choose another with {flag}"
        ) from None
    check_writable(folder, what=what, flag=flag)


def check_writable(folder: Path, *, what: str, flag: str) -> None:
    """Make sure that a folder can be written to.

    Raises:
        HostError: It cannot be written to.
    """
    if why := why_not_writable(folder):
        raise HostError(
            f"{what} {folder} cannot be written to: {why}", resolution=f"choose another with {flag}"
        )


def why_not_writable(folder: Path) -> str:
    """Return why a folder, which need not exist yet, cannot be written to; "" if it can."""
    there = nearest_existing(folder)
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    is_read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    return "its file system is read-only" if is_read_only else "permission denied"
