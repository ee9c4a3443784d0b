"""The folder of artifacts: in it one folder for each time that a test has failed, and a link to the last.

::

    kvm-artifacts/FILE/TEST/about.json   what it is about
                            GUEST/…
                  FILE/TEST~2/           the same test, which has failed again in the same run
                  last -> FILE/TEST      the last one

All of it is ours: a folder of the user's that holds something else already gets
a folder of ours in it. So nobody else's files are ever looked at or removed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvm.host import folder_marker, json_file, locks
from pytest_kvm.host.resources import disk_taken_below

ABOUT = "about.json"
LAST = "last"
_OWN = "kvm-artifacts"
"""Name of our folder in one that holds something else."""
_KIND = "artifacts"
"""What markers say: other folders that we make have the same kind of marker."""
_MOST = 10_000
"""Folders of one test in one run."""


class ArtifactStore:
    """What tests of this run and of former ones have left.

    Args:
        place: Where its folder is to be; it is made when it is first needed.
        limit: Bytes that all of it may take up; the oldest goes first.
        run: Names the run; processes that share a run give the same name.
    """

    def __init__(self, place: Path, *, limit: int, run: str) -> None:
        self._place = place
        self._limit = limit
        self._run = run
        self._in_use: locks.HeldLock | None = None
        """Keeps other processes from removing the folder that was made last."""

    def new_folder(self, test: Path) -> Path:
        """Make a folder for a test; what former runs have left of the test is removed.

        Args:
            test: A relative path for it; a number is added if this run has made it already.

        Raises:
            OSError: It cannot be made.
        """
        root = _own_folder(self._place)
        first, *others = test.parts
        wanted = root.joinpath(f"{LAST}-" if first == LAST else first, *others)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for former in [wanted, *wanted.parent.glob(f"{glob.escape(wanted.name)}~[0-9]*")]:
            if _run_of(former) not in (None, self._run):
                _remove(former)
        folder = self._make(wanted)
        with suppress(OSError):  # not every file system has links
            _link(root, folder)
        self._rotate(root, keep=folder)
        return folder

    def describe(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write down what a test's folder is about.

        Raises:
            OSError: It cannot be written.
        """
        json_file.write(folder / ABOUT, about)

    def close(self) -> None:
        """Let other processes remove all folders."""
        if self._in_use is not None:
            self._in_use.release()
            self._in_use = None

    def _make(self, wanted: Path) -> Path:
        """Make a folder under the first name that nobody has, and note that it is in use."""
        for number in range(1, _MOST):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}~{number}")
            with suppress(FileExistsError):
                folder_marker.make(folder, kind=_KIND, run=self._run)
                self.close()
                self._in_use = locks.try_shared(folder / folder_marker.MARKER)
                return folder
        raise FileExistsError(f"there are {_MOST} folders {wanted}")

    def _rotate(self, root: Path, *, keep: Path) -> None:
        """Remove the oldest folders until all together take up no more than they may."""
        found = sorted((_age(each), disk_taken_below(each), each) for each in _folders(root) if each != keep)
        total = sum(size for _, size, _ in found)
        for _, size, folder in found:
            if total <= self._limit:
                break
            _remove(folder)
            _remove_empty(folder.parent, root=root)
            total -= size


def hold(folder: Path) -> locks.HeldLock | None:
    """Keep the folder of a test from being removed until the lock is released.

    Args:
        folder: A folder in it.

    Returns:
        The lock; None if the folder is in no store that this user may write to, or is being removed.
    """
    folder = folder.resolve()  # "last" is a link
    for outer in (folder, *folder.parents):
        if _run_of(outer) is not None:
            with suppress(OSError):
                return locks.try_shared(outer / folder_marker.MARKER)
    return None


def _own_folder(place: Path) -> Path:
    """Return our folder, which is made if it is missing.

    Raises:
        OSError: It cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for folder in (place, place / _OWN):
        with suppress(FileExistsError):
            folder_marker.make(folder, kind=_KIND)
        if not _is_ours(folder) and folder_marker.is_blank(folder):
            with suppress(FileExistsError):
                folder_marker.mark(folder, kind=_KIND)
        if _is_ours(folder):
            return folder
    raise FileExistsError(f"{place / _OWN} was made by somebody else")


def _is_ours(folder: Path) -> bool:
    marker = folder_marker.marker_of(folder)
    return marker is not None and marker.get("kind") == _KIND


def _run_of(folder: Path) -> str | None:
    """Return the name of the run that has made a folder for a test; None if nobody has."""
    marker = folder_marker.marker_of(folder)
    return marker.get("run") if marker is not None and marker.get("kind") == _KIND else None


def _link(root: Path, folder: Path) -> None:
    link, fresh = root / LAST, root / f".{LAST}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.relative_to(root))
    fresh.replace(link)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of tests."""
    for name, folders, files in os.walk(root):
        if Path(name) != root and folder_marker.MARKER in files:
            folders.clear()
            if _run_of(Path(name)) is not None:
                yield Path(name)


def _remove(folder: Path) -> None:
    """Remove the folder of a test, unless a process is at work on it."""
    with suppress(OSError, ValueError):
        lock = locks.try_exclusive(folder / folder_marker.MARKER)
        if lock is not None:
            try:
                folder_marker.remove(folder)
            finally:
                lock.release()


def _remove_empty(folder: Path, *, root: Path) -> None:
    """Remove a folder if it is empty, and those around it that are empty then."""
    with suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _age(folder: Path) -> float:
    with suppress(OSError):
        return (folder / folder_marker.MARKER).stat().st_mtime
    return 0.0
