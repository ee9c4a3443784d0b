"""SHA-256 of the host files that a spec names: scripts, copied files and folders, disks."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_kvm.errors import SpecError
from pytest_kvm.images.image import digest_of
from pytest_kvm.images.qemu_img import info
from pytest_kvm.spec.prepare import HostFile, PrepareStep, Script

_WORTH_REMEMBERING = 1024**2
"""Bytes. A smaller file is read each time, and its digest is not remembered: no change can be missed."""
_LONGEST_CHAIN = 64


def check_sources(steps: Sequence[PrepareStep]) -> None:
    """Check that every host file that prepare steps name can be read; reads none.

    Raises:
        SpecError: One is missing or is not what the step needs.
    """
    for index, step in enumerate(steps):
        field = f"GuestSpec.prepare[{index}]"
        if isinstance(step, Script) and step.file is not None:
            _check_file(Path(step.file), field=field)
        if isinstance(step, HostFile):
            _check_source(step, field=field)


def file_digest(path: Path, *, field: str) -> str:
    """Return the SHA-256 of a file's content; a large file is read once while it does not change.

    Args:
        path: The file.
        field: Where the spec names it, for the message.

    Raises:
        SpecError: The file cannot be read.
    """
    _check_file(path, field=field)
    found = path.stat()
    if found.st_size < _WORTH_REMEMBERING:
        return digest_of(path)
    return _digest_of_unchanged(path.absolute(), found.st_size, found.st_mtime_ns, found.st_ino)


def disk_digests(path: Path, *, field: str) -> list[str]:
    """Return the digests of a disk file and of all its backing and data files.

    Raises:
        SpecError: One of them cannot be read.
        ImageError: The file is no disk image.
    """
    digests: list[str] = []
    waiting = [path]
    while waiting:
        file = waiting.pop()
        digests.append(file_digest(file, field=field))
        found = info(file)
        waiting += [file.parent / name for name in (found.backing_file, found.data_file) if name]
        if len(digests) > _LONGEST_CHAIN:
            raise SpecError(f"{field}: {path} stands on more than {_LONGEST_CHAIN} files")
    return digests


def source_digest(source: HostFile, *, field: str) -> str:
    """Return a digest of everything that a copied file or folder brings into the guest.

    Names, kinds, permission bits, bytes and the targets of links count; times,
    owners on the host, sockets, pipes and devices do not: they are not copied.

    Raises:
        SpecError: A part of it cannot be read.
    """
    _check_source(source, field=field)
    top = Path(source.source)
    digest = hashlib.sha256()
    try:
        for path in (top, *(_below(top) if top.is_dir() else ())):
            entry = _entry(path, top=top, field=field)
            digest.update(b"" if entry is None else json.dumps(entry).encode())
    except OSError as error:
        raise SpecError(f"{field}: {error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _entry(path: Path, *, top: Path, field: str) -> list[str | int] | None:
    """Return what is copied of one file, None for what is not copied."""
    name = str(path.relative_to(top))
    found = path.stat() if path == top else path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        return [name, "link", str(path.readlink())]
    if stat.S_ISDIR(found.st_mode):
        return [name, "folder", mode]
    if stat.S_ISREG(found.st_mode):
        return [name, "file", mode, file_digest(path, field=field)]
    return None


def _below(top: Path) -> Iterator[Path]:
    """Yield all paths in a folder, at any depth, in an order that depends on their names only."""

    def refuse(error: OSError) -> None:
        raise error  # os.walk() would leave the folder out

    for folder, folders, files in os.walk(top, onerror=refuse):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder, name)


@functools.lru_cache(maxsize=256)
def _digest_of_unchanged(path: Path, _size: int, _changed: int, _inode: int) -> str:
    return digest_of(path)


def _check_source(source: HostFile, *, field: str) -> None:
    path = Path(source.source)
    if not path.is_dir():
        _check_file(path, field=field)
    elif source.mode is not None:
        raise SpecError(
            f"{field}: mode= is for a single file, and {path} is a folder",
            resolution="leave mode out: a folder's entries keep theirs",
        )


def _check_file(path: Path, *, field: str) -> None:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise SpecError(
            f"{field}: {path} {what} on this host",
            resolution="" if path.is_absolute() else f"the path is taken from {Path.cwd()}",
        )
    if not os.access(path, os.R_OK):
        raise SpecError(f"{field}: {path} may not be read")
