"""Take a disk that exists already into the store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pytest_kvm.errors import ImageError
from pytest_kvm.images import blobs, download, qemu_img
from pytest_kvm.images.image import Image, Manifest
from pytest_kvm.images.progress import Progress, silent
from pytest_kvm.images.recipe import recipe_for
from pytest_kvm.images.store import Store


def take(
    store: Store, source: str, *, name: str, sha256: str | None = None, progress: Progress = silent
) -> Image:
    """Copy a qcow2 or raw disk into the store; guests boot it by firmware.

    Args:
        store: Where it goes.
        source: A file, or an ``http:`` or ``https:`` address.
        name: The name guests ask for it by; an image that has it is replaced.
        sha256: The digest the file must have.
        progress: Told each phase.

    Raises:
        ImageError: It is no disk, or needs other files.
        ChecksumMismatch: It is not the file that was meant.
        DownloadFailed: It cannot be fetched.
    """
    if recipe_for(name) is not None:
        raise ImageError(
            f"{name!r} is the name of an image that is built from packages",
            resolution="give the imported image another name",
        )
    with store.building(name) as work:
        file = _local(source, work, progress)
        if sha256 is not None:
            progress("checking the digest", None)
            blobs.verify(file, sha256)
        found = qemu_img.require_self_contained(file)
        progress("copying the disk", None)
        disk = work / "disk"
        qemu_img.to_qcow2(file, disk, source_format="qcow2" if found.format == "qcow2" else "raw")
        manifest = Manifest(
            name=name,
            disk=blobs.digest_of(disk),
            virtual_size=found.virtual_size,
            created=datetime.now(tz=UTC).isoformat(timespec="seconds"),
            source=source,
        )
        return store.add(manifest, {manifest.disk: disk})


def _local(source: str, work: Path, progress: Progress) -> Path:
    """Return a file on this machine for a source."""
    if download.is_address(source):
        download.fetch(source, work / "download", progress=progress)
        return work / "download"
    file = Path(source)
    if not file.is_file():
        raise ImageError(f"there is no file {source}", resolution="give the path of a qcow2 or raw disk")
    return file
