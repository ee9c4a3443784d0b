"""Commands that find a file system of their own, and a small one, in some folder; root is not needed."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o "mode=700,$1" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(folder: Path, options: str) -> list[str]:
    """Return the words to write before a command.

    Args:
        folder: What is in it is hidden from the command; what the command leaves there goes with it.
        options: Of tmpfs(5), such as ``size=100m`` or ``nr_inodes=40``.
    """
    own = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", *own, "sh", "-c", _MOUNT, "sh", options, str(folder)]
