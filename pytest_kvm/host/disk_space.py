"""Asks for disk space before it is used, and says in words where it is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.resources import disk_free_mib, files_free

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a disk, or a quota, that has no room left."""
_FILES = 16
"""A guest has about ten."""


def why_no_space(folder: Path, *, mib: int, files: int = _FILES) -> str:
    """Return what is missing on a folder's disk, "" if it has room.

    Args:
        folder: It need not exist yet.
        mib: The space that is needed, in MiB.
        files: How many files have to be possible.
    """
    free = disk_free_mib(folder)
    if free < mib:
        return f"{mib} MiB are needed in {folder}, and {free} MiB are free"
    possible = files_free(folder)
    if possible < files:
        return f"the file system of {folder} has room for {possible} more files, whatever their size"
    return ""


def check_room(needs: Sequence[tuple[Path, int]], *, what: str) -> None:
    """Check that there is room on disks, before anything is written to them.

    Args:
        needs: Folders with the MiB that are needed in each; those of folders on one disk add up.
        what: Begins the error's sentence.

    Raises:
        NoCapacity: A disk has none.
    """
    sums: dict[int, int] = {}
    for folder, mib in needs:
        device = folder.stat().st_dev
        sums[device] = sums.get(device, 0) + mib
        if why := why_no_space(folder, mib=sums[device]):
            raise NoCapacity(f"{what}: {why}")


def is_full_disk(error: BaseException) -> bool:
    """Say whether an error tells that a disk, or a quota, has no room left."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def full_disk_in_words(folder: Path, *, what: str, resolution: str) -> Generator[None]:
    """Have a block that meets a full disk fail with what was to be done, and how much is free.

    Args:
        folder: On the disk that the block writes to, unless the error names a file.
        what: What has no room, for the message.
        resolution: What the reader can do about it.

    Raises:
        NoCapacity: The block has met a full disk.
    """
    try:
        yield
    except OSError as failure:
        if not is_full_disk(failure):
            raise
        named = failure.filename2 or failure.filename
        place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else folder
        raise NoCapacity(
            f"{what}: {failure.strerror}",
            details=f"{disk_free_mib(place)} MiB are free for {place}",
            resolution=resolution,
        ) from failure
