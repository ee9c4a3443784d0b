"""A folder that a script has for itself, and that goes with it, however it ends.

Standard library only, as it is used before anything is installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT = Path("/var/tmp")  # noqa: S108 - a folder of its own in there
"""Where they are made: on a disk, as images are big."""
LOCK = "living.lock"
"""The file in each that a living script holds locked."""


@contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """Make a folder for this block, and remove those whose scripts were killed.

    Args:
        prefix: What its name, and that of its predecessors, begins with.
    """
    remove_killed(prefix)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=PARENT) as name,
        Path(name, f"{LOCK}.new").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(Path(name, LOCK))  # whoever finds it finds it locked
        yield Path(name)


def remove_killed(prefix: str) -> None:
    """Remove folders of scripts that were killed: made by this user, and the lock is nobody's."""
    for mark in PARENT.glob(f"{prefix}*/{LOCK}"):
        if mark.parent.is_symlink() or mark.is_symlink() or mark.stat().st_uid != os.getuid():
            continue
        with mark.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            print(f"removing {mark.parent}, whose script was killed", flush=True)
            shutil.rmtree(mark.parent)
