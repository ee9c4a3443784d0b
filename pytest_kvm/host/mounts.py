"""Says whether a folder is on a file system that several hosts can have mounted at the same time."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "virtiofs"),
    )
)
"""Types of file systems (filesystems(5)). One of FUSE may be shared, too: sshfs is."""


def is_shared(folder: Path, *, mounts: Path = _MOUNTS) -> bool:
    """Say whether other hosts may have a folder, too, so that its locks and processes may be theirs.

    Args:
        folder: An existing folder.
        mounts: The list of mounts (proc_pid_mountinfo(5)).
    """
    device = os.stat(folder).st_dev  # noqa: PTH116 - as major() and minor() are of os
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            kind = after.split()[0]
            return kind in _SHARED or kind.startswith("fuse.")
    return False
