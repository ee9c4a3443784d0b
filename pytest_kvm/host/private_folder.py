"""Folders that only this user may enter."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.host.writable_folder import check_writable


def make_private(folder: Path, *, what: str, flag: str) -> None:
    """Make a folder if it is missing, and make sure that only this user may enter it.

    Args:
        folder: Missing folders around it are made, too.
        what: What it is, for the message ("the run folder").
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
        raise HostError(
            f"{what} {folder} cannot be made: {failure.strerror}", resolution=f"choose another with {flag}"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(
            f"{what} {folder} is not a folder that only you may enter",
            details=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
            resolution=f"move it away, `chmod 700 {folder}`, or choose another with {flag}",
        )
    check_writable(folder, what=what, flag=flag)
