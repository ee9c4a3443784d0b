"""The image store: blobs named by their SHA-256, and names that point at them.

::

    <cache>/images/blobs/<sha256>      mode 0444, never changed
                   names/<name>.json   a manifest
                   retired/<…>.json    manifests that were replaced or are not named
                                       yet; their blobs stay a day, for runs that
                                       still use them
                   locks/<name>.lock   held while the name is built or imported
                   work/<name>.<id>/…  files of a build; removed after it, or by the
                                       next build of the name

A name is published by one rename(2), after all its blobs are on the disk. So
readers need no lock, and a build that is killed leaves only its work folder.
The store removes a blob only if a manifest names it: a file that no manifest
has ever named is not the store's, and stays.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.errors import ImageError, NoCapacity, UnknownImage
from pytest_kvm.host import folder_marker, locks
from pytest_kvm.host.disk_space import full_disk_in_words
from pytest_kvm.host.usable_folder import make_writable
from pytest_kvm.images import namespace
from pytest_kvm.images.image import (
    BLOB,
    Image,
    ImageManifest,
    ManifestFolder,
    adopt,
    read_manifest,
    write_manifest,
)
from pytest_kvm.settings import Settings
from pytest_kvm.spec.image import ImageRef

MAKE_ROOM = "make room there, or choose another disk with --kvm-cache-dir"
"""What to do about a full disk."""
BUILD_TIMEOUT = 3600.0
"""Seconds one process waits for another that builds the same image."""

_log = logging.getLogger("pytest_kvm.images")
_INDEX_TIMEOUT = 120.0
_RETIRED_FOR = 24 * 3600.0
"""Seconds that a replaced image stays, because a run may still start guests from it, or a
kept guest may restart."""
_RETIRED_FILE = re.compile(r"[^@/]+@[0-9a-f]{64}\.json")
_BLOBS = "blobs"
_WORK = re.compile(r"(.+)\.[0-9a-f]{8}")


class ImageStore:
    """Finds, publishes and removes the images on this host.

    Args:
        folder: The store's folder; it is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / _BLOBS
        self._named_images = ManifestFolder(folder / "names")
        self._retired = folder / "retired"

    @classmethod
    def of(cls, settings: Settings) -> ImageStore:
        """Return the store of a run's settings."""
        return cls(settings.cache_dir / "images")

    def find(self, ref: ImageRef) -> Image | None:
        """Return the image of a reference; None when there is none, or when one of its files is missing.

        Raises:
            ImageError: The manifest is damaged, or the image has another digest than the reference.
        """
        try:
            manifest = self._named_images.read(ref.name)
        except FileNotFoundError:
            return None
        if not manifest.disk.startswith(ref.digest or ""):
            raise ImageError(
                f"image {ref.name} has the digest {manifest.disk[:16]}…, not {ref.digest}",
                resolution="drop the digest, or import the image that has it",
            )
        return self._image(manifest) if self._is_complete(manifest) else None

    def resolve(self, ref: ImageRef) -> Image:
        """Return the image of a reference.

        Raises:
            UnknownImage: There is no such image.
        """
        image = self.find(ref)
        if image is None:
            raise UnknownImage(
                f"no image {str(ref)!r} in {self.folder}",
                resolution="pytest-kvm images list shows what is there",
            )
        return image

    def list(self) -> tuple[Image, ...]:
        """Return every complete image, by name; images with a damaged manifest are left out."""
        return tuple(self._image(each) for each in self._named_images.readable() if self._is_complete(each))

    def damaged(self) -> tuple[ImageError, ...]:
        """Return what is wrong with manifests that cannot be read."""
        return self._named_images.damaged(also=self._retired_files())

    def names(self) -> tuple[str, ...]:
        """Return the names that are taken, in order."""
        return self._named_images.names()

    def blob(self, digest: str) -> Path:
        """Return the file of a blob that a manifest names."""
        return self._blobs / digest

    def add(self, manifest: ImageManifest, files: dict[str, Path]) -> Image:
        """Publish an image: move its files into the store, then write the manifest of its name.

        Args:
            manifest: The image's manifest; replaces an image of the same name.
            files: For each blob of the manifest the file that becomes it, on
                the store's file system.
        """
        with self._index():
            # First a retired manifest: if this process is killed, it shows that the blobs are the store's.
            pending = self._retired_path(manifest)
            write_manifest(manifest, pending)
            for blob, file in files.items():
                adopt(file, self._blobs / blob)
            self._retire_what_it_replaces(manifest)
            write_manifest(manifest, self._named_images.path(manifest.name))
            pending.unlink()
            self._sweep()
        return self._image(manifest)

    def remove(self, name: str) -> None:
        """Remove a name, and the blobs that no other manifest names.

        A guest that runs on the image keeps it open and is not disturbed.

        Raises:
            UnknownImage: There is no such name.
            ImageError: A folder is in the manifest's place.
        """
        path = self._named_images.path(name)
        with self._index():
            if not path.exists():
                raise UnknownImage(f"no image {name!r} in {self.folder}", resolution="pytest-kvm images list")
            try:
                self._retire(self._named_images.read(name), since=0.0)
            except ImageError:  # damaged: nobody knows which blobs the manifest named
                if path.is_dir():
                    raise
                path.unlink()
            self._sweep()

    @contextmanager
    def building(self, name: str, *, on_wait: locks.OnWait | None = None) -> Iterator[Path]:
        """Hold the right to make the image of a name, and give a folder to make it in.

        The folder is on the store's file system and is removed at the end.
        Folders of killed builds of the name are removed at the beginning.

        Args:
            name: The image's name.
            on_wait: Called with who holds the right, if another process does.

        Raises:
            HostError: The store cannot be written to.
            NoCapacity: The other process did not finish in time, or the disk is full.
        """
        self._named_images.path(name)
        lock = self.folder / "locks" / f"{name}.lock"
        works = self.folder / "work"
        work = works / f"{name}.{secrets.token_hex(4)}"
        no_room = f"no room on the disk to make image {name}"
        with full_disk_in_words(self.folder, what=no_room, resolution=MAKE_ROOM):
            make_writable(self.folder, what="the folder of images", flag="--kvm-cache-dir")
            with locks.exclusive(lock, describe=f"making {name}", timeout=BUILD_TIMEOUT, on_wait=on_wait):
                for left in _works_in(works, name):
                    folder_marker.remove(left, namespace.remove_tree)
                works.mkdir(parents=True, exist_ok=True)
                folder_marker.make(work)
                try:
                    yield work
                finally:
                    folder_marker.remove(work, namespace.remove_tree)

    def killed_builds(self) -> tuple[Path, ...]:
        """Return the folders of builds that were killed."""
        works = sorted(_works_in(self.folder / "work"))
        return tuple(work for work in works if not self._is_busy(work))

    def remove_killed_build(self, work: Path) -> None:
        """Remove the folder of a build that was killed.

        Raises:
            NoCapacity: Somebody builds that image now.
            OSError: Something cannot be removed.
        """
        with locks.exclusive(self._build_lock(work), describe="cleaning up", timeout=0):
            folder_marker.remove(work, namespace.remove_tree)

    def _is_busy(self, work: Path) -> bool:
        try:
            with locks.exclusive(self._build_lock(work), describe="looking", timeout=0):
                return False
        except NoCapacity:
            return True

    def _build_lock(self, work: Path) -> Path:
        return self.folder / "locks" / f"{work.name.rpartition('.')[0]}.lock"

    def _is_complete(self, manifest: ImageManifest) -> bool:
        return all((self._blobs / blob).exists() for blob in manifest.blobs)

    def _image(self, manifest: ImageManifest) -> Image:
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
        # Nobody may sweep blobs while an image is half-way in the store.
        lock = self.folder / "locks" / "index"
        with locks.exclusive(lock, describe="publishing an image", timeout=_INDEX_TIMEOUT):
            yield

    def _retired_path(self, manifest: ImageManifest) -> Path:
        digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
        return self._retired / f"{manifest.name}@{digest}.json"

    def _retire_what_it_replaces(self, new: ImageManifest) -> None:
        """Retire the old image of the new one's name, and the images derived from the old one."""
        known = list(self._named_images.readable())
        replaced = {old.disk for old in known if old.name == new.name and old.disk != new.disk}
        for old in known:
            if (old.name == new.name and old.blobs != new.blobs) or old.base in replaced:
                self._retire(old, since=time.time())

    def _retire(self, manifest: ImageManifest, *, since: float) -> None:
        """Retire a name's manifest; its blobs stay for a day after ``since`` (seconds since the epoch)."""
        self._retired.mkdir(exist_ok=True)
        aside = self._named_images.path(manifest.name).rename(self._retired_path(manifest))
        os.utime(aside, (since, since))

    def _sweep(self) -> None:
        """Remove manifests that were retired a day ago, with the blobs that no other manifest names.

        Nothing is removed while a manifest is damaged: nobody knows which blobs it names.
        """
        try:
            self._named_blobs()
        except ImageError as problem:
            _log.warning("replaced images are kept: %s", problem.brief)
            return
        for path, manifest in list(self._retired_manifests()):
            if time.time() - path.lstat().st_mtime > _RETIRED_FOR:
                for name in manifest.blobs - self._named_blobs(but=path):
                    if _is_file(self._blobs / name, BLOB):
                        (self._blobs / name).unlink()
                path.unlink()  # last, because only the manifest shows that the blobs are the store's

    def _retired_manifests(self) -> Iterator[tuple[Path, ImageManifest]]:
        for path in self._retired_files():
            yield path, read_manifest(path)

    def _retired_files(self) -> Iterator[Path]:
        return (path for path in self._retired.glob("*.json") if _is_file(path, _RETIRED_FILE))

    def _named_blobs(self, *, but: Path | None = None) -> set[str]:
        """Return the blobs that manifests name, leaving out one retired manifest."""
        retired = [manifest for path, manifest in self._retired_manifests() if path != but]
        return {blob for manifest in (*self._named_images.all(), *retired) for blob in manifest.blobs}

    def foreign_files(self) -> tuple[Path, ...]:
        """Return the files in the store's folders that are not known to be the store's.

        Raises:
            ImageError: A manifest is damaged.
        """
        works = self.folder / "work"
        found = {*self._blobs.glob("*"), *works.glob("*")}
        # Manifests are read after the blobs were listed, because a blob is named before it is there.
        found -= {self._blobs / blob for blob in self._named_blobs() if BLOB.fullmatch(blob)}
        found -= set(_works_in(works))
        found |= {each for each in self._retired.glob("[!.]*") if not _is_file(each, _RETIRED_FILE)}
        found |= set(self._named_images.foreign_files())
        return tuple(sorted(path for path in found if os.path.lexists(path)))


def _works_in(works: Path, name: str | None = None) -> list[Path]:
    """Return the work folders of all builds, running or killed; only those of ``name`` if it is given."""
    found = [(path, _WORK.fullmatch(path.name)) for path in works.glob("*")]
    return [
        path
        for path, match in found
        if match
        and name in (None, match[1])
        and (folder_marker.is_ours(path) or folder_marker.is_blank(path))
    ]


def digest_in_store(path: Path) -> str | None:
    """Return the SHA-256 of a file that is a blob of an image store, by its path; None if it is none."""
    return path.name if path.parent.name == _BLOBS and BLOB.fullmatch(path.name) else None


def _is_file(path: Path, name: re.Pattern[str]) -> bool:
    """Say whether a path is a regular file whose name matches a pattern."""
    return name.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()
