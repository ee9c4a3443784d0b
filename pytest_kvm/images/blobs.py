"""Files that are named by what they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pytest_kvm.errors import ChecksumMismatch


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adopt(file: Path, blob: Path) -> None:
    """Make a file a blob: read-only, on the disk, under its digest's name.

    Args:
        file: Moved; on the same file system as ``blob``.
        blob: Where; one that is there already holds the same and is kept.
    """
    if blob.exists():
        file.unlink()
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    file.chmod(0o444)
    _sync(file)
    file.rename(blob)
    _sync(blob.parent)


def verify(path: Path, expected: str) -> None:
    """Check a file's SHA-256.

    Raises:
        ChecksumMismatch: It is another.
    """
    actual = digest_of(path)
    if actual != expected.lower():
        raise ChecksumMismatch(
            f"{path} has the SHA-256 {actual}, expected {expected}",
            resolution="fetch it again; if it differs again, the digest or the source is wrong",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
