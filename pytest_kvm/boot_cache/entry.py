"""Write, read and check the manifest and the files of one entry of the boot cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from pytest_kvm.boot_cache.manifest import (
    Damage,
    FileRecord,
    TemplateManifest,
    check_files,
    problems_of,
    record_of,
)
from pytest_kvm.host.ownership import MARKER

USED = "used"
"""Lock file that the users of the entry share; its modification time is the time of the last use."""

_MANIFEST = "manifest.json"
_OWN = frozenset({_MANIFEST, USED, MARKER})


def settle(folder: Path) -> dict[str, FileRecord]:
    """Make a folder's files private, sync them to the disk, and return a record of each.

    Raises:
        Damage: A file is still being written to.
        OSError: The disk is full or fails.
    """
    found: dict[str, FileRecord] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in _OWN:
            path.chmod(0o600)
            sync(path)
            found[path.name] = record_of(path)
    return found


def write(folder: Path, manifest: TemplateManifest) -> None:
    """Write or replace an entry's manifest in one step, and sync it to the disk."""
    with NamedTemporaryFile("w", dir=folder, prefix=".manifest.", delete=False) as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(folder / _MANIFEST)
    sync(folder)


def read(folder: Path, key: str) -> TemplateManifest:
    """Read the manifest of a key's entry, without a look at the entry's files.

    Raises:
        Damage: The manifest cannot be read, is damaged, or belongs to another key.
    """
    try:
        manifest = TemplateManifest.from_json((folder / _MANIFEST).read_text(errors="replace"))
    except OSError as error:
        raise Damage(f"its manifest cannot be read: {error.strerror}") from None
    if manifest.key != key:
        raise Damage(f"its manifest is that of {manifest.key[:12]}")
    return manifest


def read_checked(folder: Path, key: str) -> TemplateManifest:
    """Return the manifest of a key's entry, after a check that the entry's files match it.

    Files that were moved or restored from an archive are read in full. Then
    the manifest is written again with their new records, so that the next
    check need not read them.

    Raises:
        Damage: The manifest is damaged, or a file does not match it.
    """
    manifest = read(folder, key)
    current = check_files(folder, manifest)
    if current != manifest:
        with suppress(OSError):  # no room: then the next claim reads the files again
            write(folder, current)
    return current


def problems(folder: Path, key: str) -> Iterator[str]:
    """Yield what is wrong with a key's entry; every file is read."""
    try:
        manifest = read(folder, key)
    except Damage as damage:
        yield str(damage)
    else:
        yield from problems_of(folder, manifest)


def size(folder: Path) -> int:
    """Return the bytes an entry takes up on disk and in memory; holes take none."""
    blocks = sum(path.stat().st_blocks for path in folder.iterdir() if path.exists())
    return blocks * 512  # the unit of st_blocks (stat(2))


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
