"""Says whether a folder is on a file system that several hosts can have mounted at the same time."""

from __future__ import annotations

from pathlib import Path

import psutil

_LOCAL = frozenset(
    (
        *("aufs", "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs"),
        *("fuse.fuse-overlayfs", "fuseblk", "jfs", "msdos", "nilfs2", "ntfs3", "overlay"),
        *("ramfs", "reiserfs", "rootfs", "shiftfs", "squashfs", "tmpfs", "udf", "ufs"),
        *("vfat", "xfs", "zfs"),
    )
)
"""Types of file systems (filesystems(5)) that one host has mounted."""


def is_shared(folder: Path) -> bool:
    """Say whether other hosts may have a folder, too, so that its locks and processes may be theirs.

    A file system of a type that is not known is taken for a shared one.

    Args:
        folder: An existing folder.
    """
    path = folder.resolve()
    around = [each for each in psutil.disk_partitions(all=True) if path.is_relative_to(each.mountpoint)]
    # Of two with the same mount point, the later one hides the former.
    found = max(enumerate(around), key=lambda each: (len(each[1].mountpoint), each[0]), default=None)
    return found is None or found[1].fstype not in _LOCAL
