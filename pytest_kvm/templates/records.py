"""Files against what the manifest says of them, cheaply where nothing touched them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pytest_kvm.templates.digest import digest_of
from pytest_kvm.templates.manifest import Damage, FileRecord, Manifest


def record(path: Path) -> FileRecord:
    """Read a file and write down what it holds.

    Raises:
        Damage: It is no regular file, or was written to meanwhile.
        OSError: It cannot be read.
    """
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):
        raise Damage(f"{path.name} is no regular file")
    found = FileRecord(
        size=before.st_size,
        sha256=digest_of(path),
        mtime_ns=before.st_mtime_ns,
        ctime_ns=before.st_ctime_ns,
        inode=before.st_ino,
    )
    if not _untouched(path.stat(), found):
        raise Damage(f"{path.name} changes while it is read")
    return found


def checked(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of a folder whose files are as it says.

    A file that looks as it did is believed; one that looks different (it was
    copied, or restored from an archive) is read. The manifest that is returned
    knows the new looks.

    Raises:
        Damage: A file is missing or holds something else.
    """
    looked_at = {name: _checked(folder / name, known) for name, known in manifest.files.items()}
    return manifest if looked_at == manifest.files else replace(manifest, files=looked_at)


def problems(folder: Path, manifest: Manifest) -> Iterable[str]:
    """Yield what is wrong with a folder's files; every file is read."""
    for name, known in manifest.files.items():
        try:
            _compared(folder / name, known)
        except Damage as damage:
            yield str(damage)


def _checked(path: Path, known: FileRecord) -> FileRecord:
    try:
        if _untouched(path.stat(), known):
            return known
    except OSError as error:
        raise Damage(_unreadable(path, error)) from None
    return _compared(path, known)


def _compared(path: Path, known: FileRecord) -> FileRecord:
    try:
        size = path.stat().st_size
        if size != known.size:
            raise Damage(f"{path.name} has {size} bytes instead of {known.size}")
        found = record(path)
    except OSError as error:
        raise Damage(_unreadable(path, error)) from None
    if found.sha256 != known.sha256:
        raise Damage(f"{path.name} is not what was written")
    return found


def _untouched(now: os.stat_result, known: FileRecord) -> bool:
    seen = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    return stat.S_ISREG(now.st_mode) and seen == (
        known.size,
        known.mtime_ns,
        known.ctime_ns,
        known.inode,
    )


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        # What a link into memory points at is gone after a reboot.
        return f"{path.name} is missing" + (" (it was in memory)" if path.is_symlink() else "")
    return f"{path.name} cannot be read: {error.strerror}"
