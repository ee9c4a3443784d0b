"""One entry's manifest and files: written, read, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from pytest_kvm.boot_cache.manifest import Damage, FileRecord, Manifest, check_files, problems_of, record_of
from pytest_kvm.host.ownership import MARKER

USED = "used"
"""The lock that users of the entry share; its time is the last use."""

_MANIFEST = "manifest.json"
_OWN = frozenset({_MANIFEST, USED, MARKER})


def settle(folder: Path) -> dict[str, FileRecord]:
    """Make a folder's files private, put them on the disk, and write down what they hold.

    Raises:
        Damage: One of them is still written to.
        OSError: The disk is full, or worse.
    """
    found: dict[str, FileRecord] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in _OWN:
            path.chmod(0o600)
            sync(path)
            found[path.name] = record_of(path)
    return found


def write(folder: Path, manifest: Manifest) -> None:
    """Write an entry's manifest, or replace it, at once and on the disk."""
    with NamedTemporaryFile("w", dir=folder, prefix=".manifest.", delete=False) as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(folder / _MANIFEST)
    sync(folder)


def read(folder: Path, key: str) -> Manifest:
    """Read the manifest of a key's entry; its files are not looked at.

    Raises:
        Damage: It cannot be believed.
    """
    try:
        manifest = Manifest.from_json((folder / _MANIFEST).read_text(errors="replace"))
    except OSError as error:
        raise Damage(f"its manifest cannot be read: {error.strerror}") from None
    if manifest.key != key:
        raise Damage(f"its manifest is that of {manifest.key[:12]}")
    return manifest


def read_checked(folder: Path, key: str) -> Manifest:
    """Return the manifest of a key's entry, its files being what it says.

    Files that were moved or restored from an archive are read, and the
    manifest written anew, so that they are read once.

    Raises:
        Damage: They are not.
    """
    manifest = read(folder, key)
    current = check_files(folder, manifest)
    if current != manifest:
        with suppress(OSError):  # no room: the next claim reads them again, that is all
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
    """Return when a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
