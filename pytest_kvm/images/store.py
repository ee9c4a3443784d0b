"""The image store: blobs named by their SHA-256, and names that point at them.

::

    <cache>/images/blobs/<sha256>      mode 0444, never changed
                   names/<name>.json   a manifest
                   retired/<…>.json    manifests that were replaced; their blobs
                                       stay a day, for runs that still use them
                   locks/<name>.lock   held while the name is built or imported
                   work/<name>/…       what a build is busy with; swept by the next

A name appears by one rename(2), after everything it points at is on the disk:
readers take no lock, and a build that is killed leaves no trace but its work
folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from pytest_kvm.errors import ImageError, UnknownImage
from pytest_kvm.host import locks
from pytest_kvm.images import namespace
from pytest_kvm.images.blobs import adopt
from pytest_kvm.images.image import Image, Manifest
from pytest_kvm.settings import Settings
from pytest_kvm.spec.image import ImageRef

BUILD_TIMEOUT = 3600.0
"""Seconds one process waits for another that builds the same image."""

_INDEX_TIMEOUT = 120.0
_RETIRED_FOR = 24 * 3600.0
"""Seconds a replaced image stays: a run may start guests from it, a kept guest may restart."""


class Store:
    """Images on this machine.

    Args:
        folder: Where they are; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs"
        self._names = folder / "names"
        self._retired = folder / "retired"

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """Return the store of a run's settings."""
        return cls(settings.cache_dir / "images")

    def find(self, ref: ImageRef) -> Image | None:
        """Return the image of a reference, None when there is none.

        Raises:
            ImageError: The manifest is damaged, or the digest is another.
        """
        path = self._manifest_path(ref.name)
        try:
            manifest = Manifest.from_json(path.read_text(), origin=path)
        except FileNotFoundError:
            return None
        if not manifest.disk.startswith(ref.digest or ""):
            raise ImageError(
                f"image {ref.name} has the digest {manifest.disk[:16]}…, not {ref.digest}",
                resolution="drop the digest, or import the image that has it",
            )
        if any(not (self._blobs / blob).exists() for blob in manifest.blobs):
            return None
        return self._image(manifest)

    def resolve(self, ref: ImageRef) -> Image:
        """Return the image of a reference.

        Raises:
            UnknownImage: There is none.
        """
        image = self.find(ref)
        if image is None:
            raise UnknownImage(
                f"no image {str(ref)!r} in {self.folder}",
                resolution="pytest-kvm images list shows what is there",
            )
        return image

    def list(self) -> tuple[Image, ...]:
        """Return every complete image, by name."""
        found = (self.find(ImageRef(name)) for name in self.names())
        return tuple(image for image in found if image is not None)

    def names(self) -> tuple[str, ...]:
        """Return the names that are taken, in order."""
        return tuple(sorted(path.stem for path in self._names.glob("[!.]*.json")))

    def blob(self, digest: str) -> Path:
        """Return the file of a blob that a manifest names."""
        return self._blobs / digest

    def add(self, manifest: Manifest, files: dict[str, Path]) -> Image:
        """Publish an image: move its files into the store, then name it.

        Args:
            manifest: What it is; replaces an image of the same name.
            files: Each blob of the manifest and the file that becomes it, on
                the store's file system.
        """
        with self._index():
            for blob, file in files.items():
                adopt(file, self._blobs / blob)
            self._retire_what_it_replaces(manifest)
            self._write_name(manifest)
            self._sweep()
        return self._image(manifest)

    def remove(self, name: str) -> None:
        """Remove a name, and the blobs nothing else points at.

        A guest that runs on the image keeps it open and is not disturbed.

        Raises:
            UnknownImage: There is no such name.
        """
        path = self._manifest_path(name)
        with self._index():
            if not path.exists():
                raise UnknownImage(f"no image {name!r} in {self.folder}", resolution="pytest-kvm images list")
            path.unlink()
            self._sweep()

    @contextmanager
    def building(self, name: str, *, on_wait: locks.OnWait | None = None) -> Iterator[Path]:
        """Hold the right to make a name, and a folder to make it in.

        The folder is on the store's file system and is removed at the end;
        what a killed holder left there is removed at the beginning.

        Args:
            name: The image's name.
            on_wait: Told who holds it, when somebody does.

        Raises:
            NoCapacity: The other process did not finish in time.
        """
        self._manifest_path(name)
        lock = self.folder / "locks" / f"{name}.lock"
        work = self.folder / "work" / name
        with locks.exclusive(lock, describe=f"making {name}", timeout=BUILD_TIMEOUT, on_wait=on_wait):
            namespace.remove_tree(work)
            work.mkdir(parents=True)
            try:
                yield work
            finally:
                namespace.remove_tree(work)

    def _manifest_path(self, name: str) -> Path:
        # ImageRef knows what a name may be; nothing else becomes a path.
        return self._names / f"{ImageRef(name).name}.json"

    def _image(self, manifest: Manifest) -> Image:
        def blob(digest: str | None) -> Path | None:
            return self._blobs / digest if digest else None

        return Image(
            name=manifest.name,
            digest=manifest.disk,
            disk=self._blobs / manifest.disk,
            virtual_size=manifest.virtual_size,
            kernel=blob(manifest.kernel),
            initrd=blob(manifest.initrd),
            cmdline=manifest.cmdline,
            built_from_packages=manifest.rootfs is not None,
            packages=manifest.packages,
            manifest=manifest,
        )

    @contextmanager
    def _index(self) -> Iterator[None]:
        # Between a blob's arrival and its name's, nobody may sweep blobs.
        lock = self.folder / "locks" / "index"
        with locks.exclusive(lock, describe="publishing an image", timeout=_INDEX_TIMEOUT):
            yield

    def _write_name(self, manifest: Manifest) -> None:
        self._names.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=self._names, prefix=".", delete=False) as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(self._manifest_path(manifest.name))

    def _retire_what_it_replaces(self, new: Manifest) -> None:
        """Put aside the old image of a name, and those derived from it."""
        replaced = {old.disk for old in self._manifests() if old.name == new.name and old.disk != new.disk}
        for old in self._manifests():
            if old.disk in replaced or old.base in replaced:
                self._retired.mkdir(exist_ok=True)
                aside = self._manifest_path(old.name).rename(self._retired / f"{old.name}@{old.disk}.json")
                aside.touch()

    def _manifests(self) -> Iterator[Manifest]:
        for name in self.names():
            path = self._manifest_path(name)
            yield Manifest.from_json(path.read_text(), origin=path)

    def _sweep(self) -> None:
        """Remove what was retired a day ago, and blobs that no manifest names."""
        for path in self._retired.glob("*.json"):
            if time.time() - path.stat().st_mtime > _RETIRED_FOR:
                path.unlink()
        named: set[str] = set()
        for path in (*self._names.glob("[!.]*.json"), *self._retired.glob("*.json")):
            named |= Manifest.from_json(path.read_text(), origin=path).blobs
        for blob in self._blobs.glob("*"):
            if blob.name not in named:
                blob.unlink()
