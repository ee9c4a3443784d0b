"""An image of the store, the manifest that describes it, and the folder of all manifests."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kvm.errors import ChecksumMismatch, ImageError
from pytest_kvm.spec.image import ImageRef

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

    def check_is_there(self) -> None:
        """Check that nobody has removed a file of it since it was found.

        Raises:
            ImageError: Somebody has.
        """
        for file in filter(None, (self.disk, self.kernel, self.initrd)):
            if not os.access(file, os.F_OK):
                raise ImageError(
                    f"image {self.name}: {file} is gone: somebody has removed it",
                    resolution="remove nothing from the cache while tests run",
                )


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


class ManifestFolder:
    """A folder of manifests; a damaged one does not keep the others from being read.

    Args:
        folder: The folder; it is made when a manifest is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        """Return the names that are taken, in order."""
        return tuple(sorted(path.stem for path in self._folder.glob("[!.]*.json")))

    def path(self, name: str) -> Path:
        """Return the file of a name.

        Raises:
            SpecError: ``name`` is no image name, and only image names become paths.
        """
        return self._folder / f"{ImageRef(name).name}.json"

    def read(self, name: str) -> ImageManifest:
        """Return the manifest of a name.

        Raises:
            FileNotFoundError: There is no such name.
            ImageError: The file is damaged.
        """
        path = self._folder / f"{name}.json"
        manifest = read_manifest(path)
        if manifest.name != name:
            raise ImageError(
                f"{path} is the manifest of {manifest.name!r}",
                resolution=f"remove it: pytest-kvm images rm {name}",
            )
        return manifest

    def all(self) -> Iterator[ImageManifest]:
        """Yield every manifest.

        Raises:
            ImageError: A manifest is damaged.
        """
        for name in self.names():
            with suppress(FileNotFoundError):  # removed meanwhile
                yield self.read(name)

    def readable(self) -> Iterator[ImageManifest]:
        """Yield every manifest that is not damaged."""
        for name in self.names():
            with suppress(FileNotFoundError, ImageError):
                yield self.read(name)

    def foreign_files(self) -> list[Path]:
        """Return the files in the folder that are no manifests."""
        return [path for path in self._folder.glob("[!.]*") if path.suffix != ".json"]

    def damaged(self, *, also: Iterable[Path]) -> tuple[ImageError, ...]:
        """Return what is wrong with the damaged manifests in the folder and among the files ``also``."""
        reads = [partial(self.read, name) for name in self.names()]
        reads += [partial(read_manifest, path) for path in also]
        problems: list[ImageError] = []
        for read_one in reads:
            try:
                read_one()
            except ImageError as problem:
                problems.append(problem)
            except FileNotFoundError:
                continue
        return tuple(problems)


def read_manifest(path: Path) -> ImageManifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: It is not there.
        ImageError: It is damaged.
    """
    try:
        return ImageManifest.from_json(path.read_text(errors="replace"), origin=path)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise ImageError(
            f"{path} cannot be read: {problem.strerror}", resolution="remove it, or give it back its rights"
        ) from problem


def write_manifest(manifest: ImageManifest, path: Path) -> None:
    """Write a manifest in one step, and sync it to the disk; only one process at a time may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(".new")
    beside.unlink(missing_ok=True)  # left by a process that was killed
    with beside.open("x") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(0o644)
    beside.replace(path)
