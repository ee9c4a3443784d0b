"""One entry of the boot cache: its manifest, and the check that its files still match the manifest.

A file is read again only if its size, times or inode have changed since it was
last read. Its digest leaves out blocks of zeros: a RAM file is mostly holes,
and a copy of it (a CI cache's archive, ``cp``) may turn zeros into holes or
holes into zeros.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pytest_kvm.host.folder_marker import MARKER

FORMAT = 1
"""Format number of entries. An entry with another number is of another plugin version, and is dropped."""
_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)


class Damage(Exception):  # noqa: N818 - it is no failure: the template is built again
    """Raised if an entry cannot be used; its text says why, for a warning."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and digest of a file, and its times and inode when it was last read."""

    size: int
    """Bytes."""
    sha256: str
    """Digest by :func:`sparse_digest`, not the SHA-256 of the whole file."""
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, kw_only=True)
class TemplateManifest:
    """What the store knows about a template."""

    key: str
    format: int
    created: str
    """When it was published, ISO 8601 in UTC."""
    summary: str
    """The spec of the saved guest, for people."""
    versions: dict[str, str]
    """Versions of QEMU, libvirt and the plugin that made the template."""
    facts: dict[str, Any]
    """What is needed to start a clone, in values that JSON can hold."""
    files: dict[str, FileRecord]
    """Records of the files, by name without a folder."""

    def to_json(self) -> str:
        """Return the manifest as it is stored: with a checksum over itself."""
        content = asdict(self)
        return json.dumps({"checksum": _checksum(content), "manifest": content}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TemplateManifest:
        """Read a stored manifest.

        Raises:
            Damage: The text is no manifest, its checksum is wrong, or it has another format.
        """
        try:
            stored = json.loads(text)
            content, checksum = stored["manifest"], stored["checksum"]
            if content["format"] != FORMAT:
                raise Damage(f"its format is {content['format']!r}, not {FORMAT}")
            if checksum != _checksum(content):
                raise Damage("its manifest is not what was written")
            files = {_plain(name): FileRecord(**record) for name, record in content.pop("files").items()}
            return cls(**content, files=files)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise Damage(f"its manifest cannot be read: {problem!r}") from None


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name:
        raise ValueError(f"{name!r} is not a file's name")
    return name


def record_of(path: Path) -> FileRecord:
    """Read a file and return its record.

    Raises:
        Damage: It is no regular file, or was written to meanwhile.
        OSError: It cannot be read.
    """
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):
        raise Damage(f"{path.name} is no regular file")
    found = FileRecord(
        size=before.st_size,
        sha256=sparse_digest(path),
        mtime_ns=before.st_mtime_ns,
        ctime_ns=before.st_ctime_ns,
        inode=before.st_ino,
    )
    if not _is_untouched(path.stat(), found):
        raise Damage(f"{path.name} changes while it is read")
    return found


def check_files(folder: Path, manifest: TemplateManifest) -> TemplateManifest:
    """Check a folder's files, and return the manifest with up-to-date records of them.

    A file whose size, times and inode are those of its record is not read. A
    file with others is read: it was copied, or restored from an archive. The
    returned manifest has its new times and inode.

    Raises:
        Damage: A file is missing or has other contents.
    """
    looked_at = {name: _check_file(folder / name, known) for name, known in manifest.files.items()}
    return manifest if looked_at == manifest.files else replace(manifest, files=looked_at)


def problems_of(folder: Path, manifest: TemplateManifest) -> Iterable[str]:
    """Yield what is wrong with a folder's files; every file is read."""
    for name, known in manifest.files.items():
        try:
            _compare_file(folder / name, known)
        except Damage as damage:
            yield str(damage)


def _check_file(path: Path, known: FileRecord) -> FileRecord:
    try:
        if _is_untouched(path.stat(), known):
            return known
    except OSError as error:
        raise Damage(_unreadable(path, error)) from None
    return _compare_file(path, known)


def _compare_file(path: Path, known: FileRecord) -> FileRecord:
    try:
        size = path.stat().st_size
        if size != known.size:
            raise Damage(f"{path.name} has {size} bytes instead of {known.size}")
        found = record_of(path)
    except OSError as error:
        raise Damage(_unreadable(path, error)) from None
    if found.sha256 != known.sha256:
        raise Damage(f"{path.name} is not what was written")
    return found


def _is_untouched(now: os.stat_result, known: FileRecord) -> bool:
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


def sparse_digest(path: Path) -> str:
    """Return a digest of a file in hexadecimal, which is the same whether zeros are stored or are holes.

    It is the SHA-256 of the file's size, and then of the number and the
    contents of each block of 64 KiB that is not all zeros.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        digest.update(size.to_bytes(8, "big"))
        for number in _blocks_with_data(descriptor, size):
            block = os.pread(descriptor, _BLOCK, number * _BLOCK)
            if block != _ZEROS[: len(block)]:
                digest.update(number.to_bytes(8, "big"))
                digest.update(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _blocks_with_data(descriptor: int, size: int) -> Iterator[int]:
    """Yield the numbers of the blocks that are not wholly in a hole (``lseek(2)``, ``SEEK_DATA``)."""
    block = 0
    while block * _BLOCK < size:
        try:
            start = os.lseek(descriptor, block * _BLOCK, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        first = max(block, start // _BLOCK)
        block = -(-end // _BLOCK)
        yield from range(first, block)


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
    for path in _files_in(folder):
        path.chmod(0o600)
        sync(path)
        found[path.name] = record_of(path)
    return found


def clear(folder: Path) -> None:
    """Remove a folder's files; a file in memory stays, and is empty."""
    for path in _files_in(folder):
        if path.is_symlink():
            os.truncate(path, 0)
        else:
            path.unlink()


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a template, without those of its entry."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _OWN]


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
