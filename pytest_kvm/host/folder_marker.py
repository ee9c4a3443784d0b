"""Makes folders with a marker file in them, and removes only folders that hold such a marker.

The marker proves that the plugin made the folder. The folder's name proves
nothing, because the user chooses where it lies (``--kvm-run-dir=$HOME``). The
marker is written when the folder is made, and removed last: a removal that is
killed half-way leaves a folder that still has its marker. This module imports
only the standard library, because the watcher uses it, too.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvm.host import json_file

MARKER = "made-by-pytest-kvm.json"
_LONGEST = 1000
"""Characters of each entry that others choose, such as a command line: a large marker would not be read."""
_PASSES = 3
"""How often a removal empties a folder: libvirt may still write files into it meanwhile."""


def make(folder: Path, **facts: str) -> None:
    """Make a folder that only this user may enter, with a marker in it.

    Args:
        folder: Must not exist; its parent must.
        facts: Further entries of the marker; long ones are cut.

    Raises:
        FileExistsError: Something of that name exists already.
        OSError: The folder cannot be made; nothing is left of it.
    """
    folder.mkdir(mode=0o700)
    try:
        mark(folder, **facts)
    except OSError:  # the disk is full, perhaps
        (folder / MARKER).unlink(missing_ok=True)
        folder.rmdir()
        raise


def mark(folder: Path, **facts: str) -> None:
    """Put a marker into an existing folder; the caller knows by other means that the plugin made it.

    Raises:
        OSError: The marker cannot be written, or there is one already.
    """
    from importlib.metadata import version  # noqa: PLC0415 - the watcher has no packages, and never calls this

    said = {
        "folder": folder.name,
        "made_by": "pytest-kvm",
        "version": version("pytest-kvm"),
        "user": os.geteuid(),
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{name: fact[:_LONGEST] for name, fact in facts.items()},
    }
    if os.path.lexists(folder / MARKER):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder / MARKER))
    json_file.write(folder / MARKER, said)


def marker_of(folder: Path, *, owner: int | None = None) -> dict[str, Any] | None:
    """Return the entries of a folder's marker; None if the plugin did not make the folder for the owner.

    Neither the folder nor its marker may be a symbolic link, and the marker
    has to name the folder: a copy of the marker in another folder proves nothing.

    Args:
        folder: The folder.
        owner: The user's id; None: this user's.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return None
    except OSError:
        return None
    said = json_file.read(folder / MARKER, owner=os.geteuid() if owner is None else owner)
    is_marker = said is not None and (said.get("made_by"), said.get("folder")) == ("pytest-kvm", folder.name)
    return said if is_marker else None


def is_ours(folder: Path) -> bool:
    """Say whether the plugin made a folder for this user."""
    return marker_of(folder) is not None


def is_blank(folder: Path) -> bool:
    """Say whether a folder is empty, or holds only an empty or an unfinished marker.

    A process that is killed while it makes or removes a folder leaves it so, and so may a
    power cut.
    Nothing is lost by removing it, but another process may just be making it:
    remove it only under a lock that keeps others from making folders there.
    """
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        entries = list(folder.iterdir())
        return all(_is_begun_marker(each) for each in entries)
    except OSError:
        return False


def remove(
    folder: Path, discard: Callable[[Path], object] | None = None, *, keeps: Collection[str] = ()
) -> None:
    """Remove a folder that is ours or blank, its marker last; do nothing if it is gone already.

    Args:
        folder: The folder.
        discard: Removes one entry with all it holds; by default :func:`discard_tree`.
        keeps: Names of entries that stay, and the folder with its marker then.

    Raises:
        OSError: Something could not be removed; all else was, and the marker is still there.
        ValueError: The folder is not ours to remove.
    """
    if not os.path.lexists(folder):
        return
    if not is_ours(folder) and not is_blank(folder):
        raise ValueError(f"{folder} was not made by pytest-kvm")
    problems: list[OSError] = []
    for _ in range(_PASSES):
        problems = _empty(folder, discard or discard_tree, keeps=keeps)
    if problems:
        raise problems[0]
    if keeps:
        return
    (folder / MARKER).unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another process removed it, too
        folder.rmdir()


def discard_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all it holds; follow no links.

    Raises:
        OSError: Something could not be removed; all else was.
    """
    problems: list[OSError] = []

    def note(_function: object, _path: str, failure: tuple[object, BaseException, object]) -> None:
        error = failure[1]
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            problems.append(error)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=note)
    else:
        path.unlink(missing_ok=True)
    if problems:
        raise problems[0]


def _empty(folder: Path, discard: Callable[[Path], object], *, keeps: Collection[str]) -> list[OSError]:
    """Remove everything but the marker and what is to stay; return the errors."""
    problems: list[OSError] = []
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != MARKER and path.name not in keeps:
            try:
                discard(path)
            except OSError as error:
                problems.append(error)
    return problems


def _is_begun_marker(path: Path) -> bool:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return False
    return json_file.is_unfinished(path, MARKER) or (path.name == MARKER and found.st_size == 0)
