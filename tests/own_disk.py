"""Commands that find a folder on another file system, or a file in another's place; root is not needed."""

from __future__ import annotations

import os
from pathlib import Path

_SMALL = 'mount -t tmpfs -o "mode=700,$1" tmpfs "$2" && shift 2 && exec "$@"'
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
_IN_PLACE = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


def on_small_disk(folder: Path, options: str) -> list[str]:
    """Return the words to write before a command.

    Args:
        folder: What is in it is hidden from the command; what the command leaves there goes with it.
        options: Of tmpfs(5), such as ``size=100m`` or ``nr_inodes=40``.
    """
    return _mounted(_SMALL, options, str(folder))


def with_read_only(folder: Path) -> list[str]:
    """Return the words to write before a command that must not write to a folder."""
    return _mounted(_READ_ONLY, str(folder))


def with_in_place(other: Path, path: Path) -> list[str]:
    """Return the words to write before a command that finds another file in a file's place."""
    return _mounted(_IN_PLACE, str(other), str(path))


def without(path: Path) -> list[str]:
    """Return the words to write before a command for which a program, library or device is of no use."""
    return with_in_place(Path("/dev/null"), path)


def _mounted(script: str, *arguments: str) -> list[str]:
    own = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", *own, "sh", "-c", script, "sh", *arguments]
