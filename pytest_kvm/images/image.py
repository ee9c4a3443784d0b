"""An image of the store, and the manifest that describes it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_kvm.errors import ChecksumMismatch, ImageError

BLOB = re.compile(r"[0-9a-f]{64}")
"""The name of a blob: its SHA-256."""


@dataclass(frozen=True, kw_only=True)
class ImageManifest:
    """What the store knows about the image of a name; disk, kernel, initrd and rootfs are names of blobs."""

    name: str
    disk: str
    virtual_size: int
    """Bytes the guest sees."""
    created: str
    """When it was published, ISO 8601 in UTC."""
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    rootfs: str | None = None
    """The root filesystem as a compressed tar archive, for derived images."""
    recipe: str | None = None
    """Name of the recipe it was built from; None when it was imported."""
    recipe_version: str | None = None
    base: str | None = None
    """SHA-256 of the disk of the image that this one was derived from."""
    packages: tuple[str, ...] = ()
    """Packages that were installed in addition to those of the base."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Versions of the packages that decide how it boots."""
    source: str = ""
    """The file or address it was imported from."""

    @property
    def blobs(self) -> frozenset[str]:
        """Names of all blobs the image consists of."""
        return frozenset(blob for blob in (self.disk, self.kernel, self.initrd, self.rootfs) if blob)

    def to_json(self) -> str:
        """Return the manifest as it is stored."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: Path) -> ImageManifest:
        """Read a stored manifest; fields of a later version are ignored.

        Raises:
            ImageError: The text is no manifest.
        """
        known = {each.name for each in fields(cls)}
        try:
            stored: dict[str, Any] = json.loads(text)
            values = {key: value for key, value in stored.items() if key in known}
            values["packages"] = tuple(values.get("packages", ()))
            manifest = cls(**values)
            manifest._check()
        except (ValueError, TypeError, AttributeError) as problem:
            raise ImageError(
                f"{origin} is not an image manifest: {problem}",
                resolution="remove the file; the image is built again on next use",
            ) from None
        return manifest

    def _check(self) -> None:
        """Raise ValueError or TypeError if a value has the wrong type or form."""
        texts: list[object] = [self.name, self.created, self.cmdline, self.source, *self.packages]
        texts += [*self.versions, *self.versions.values(), self.recipe or "", self.recipe_version or ""]
        if wrong := [each for each in texts if not isinstance(each, str)]:
            raise ValueError(f"{wrong[0]!r} is no text")
        if wrong := [each for each in (*self.blobs, self.base or self.disk) if not BLOB.fullmatch(each)]:
            raise ValueError(f"{wrong[0]!r} is no SHA-256")
        if not isinstance(self.virtual_size, int):
            raise TypeError(f"{self.virtual_size!r} is no size")


@dataclass(frozen=True, kw_only=True)
class Image:
    """A read-only disk; if it has them, also the kernel and initrd that boot it without firmware."""

    name: str
    digest: str
    """SHA-256 of the disk file."""
    disk: Path
    """A qcow2 file without a backing file; never written to."""
    virtual_size: int
    """Bytes the guest sees."""
    kernel: Path | None
    """For direct boot; None when the image boots by firmware only."""
    initrd: Path | None
    cmdline: str
    """Arguments that the kernel needs to find its root; the caller adds those for the console."""
    built_from_packages: bool
    """Further packages can be installed at build time (:func:`~pytest_kvm.images.ensure.ensure`)."""
    packages: tuple[str, ...]
    manifest: ImageManifest


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adopt(file: Path, blob: Path) -> None:
    """Turn a file into a blob: read-only, synced to the disk, named by its digest.

    Args:
        file: The file, which is moved; on the same file system as ``blob``.
        blob: The blob's path. If it exists, it has the same contents and is kept.
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
        ChecksumMismatch: The file has another SHA-256.
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
