"""A guest's disk and the files below it, which it shows where it was not written to; copies of them.

A guest can write to its disk what looks like another format, and names a file
of the host. So what a guest can write to is taken for what its machine takes it
for, and a format is only guessed where nobody has noted it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.errors import ImageError
from pytest_kvm.host.resources import disk_taken_mib
from pytest_kvm.images.image_store import digest_in_store
from pytest_kvm.images.qemu_img import copy_sparse, drop_snapshot, info, point_at, rebase

FORMATS = ("qcow2", "raw")
"""Formats of files that can be copied."""


@dataclass(frozen=True, kw_only=True)
class DiskLayers:
    """The files of a disk, but for an image of the store at the bottom."""

    files: tuple[Path, ...]
    """The one that the guest writes to comes first."""
    formats: tuple[str, ...]
    image: Path | None
    """The image below them; None: they are complete."""

    @property
    def taken_mib(self) -> int:
        """How much (MiB) of their disks they take."""
        return disk_taken_mib(self.files)


def layers_of(disk: Path, *, disk_format: str) -> DiskLayers:
    """Return a disk's files.

    Args:
        disk: The file that the guest writes to.
        disk_format: What its machine takes it for.

    Raises:
        ImageError: One of them is gone, or a copy of it would not be complete.
    """
    files: list[Path] = []
    formats: list[str] = []
    below: Path | None = disk
    format_below: str | None = disk_format
    while below is not None and (not files or digest_in_store(below) is None):
        if below in files:
            raise ImageError(f"{disk} is below itself")
        found = info(below, disk_format=format_below)
        if found.format not in FORMATS or found.data_file or found.encrypted:
            raise ImageError(f"{below} is not copied: only plain qcow2 and raw files are")
        files.append(below)
        formats.append(found.format)
        format_below = found.backing_format
        below = (below.parent / found.backing_file).resolve() if found.backing_file else None
    return DiskLayers(files=tuple(files), formats=tuple(formats), image=below)


def copy_as_one(layers: DiskLayers, target: Path) -> None:
    """Copy what a disk holds into one file, which needs nothing but the image, and has no snapshots.

    Raises:
        HostCommandFailed: The copy failed, for instance for want of room.
        ImageError: qemu-img cannot read it.
    """
    top, *between = layers.files
    copy_to_own(top, target)
    if layers.formats[0] == "qcow2":
        drop_snapshots(target)
    if between:
        point_at(target, backing=between[0], backing_format=layers.formats[1])
        rebase(target, backing=layers.image)
    elif layers.image is not None:
        point_at(target, backing=layers.image, backing_format="qcow2")


def copy_all(layers: DiskLayers, targets: list[Path]) -> None:
    """Copy all files of a disk, with their snapshots; each copy names the one below it by its name alone.

    Raises:
        HostCommandFailed: A copy failed, for instance for want of room.
    """
    for source, target in zip(layers.files, targets, strict=True):
        copy_to_own(source, target)
    for target, below, disk_format in zip(targets, targets[1:], layers.formats[1:], strict=False):
        point_at(target, backing=Path(below.name), backing_format=disk_format)
    if layers.image is not None:
        point_at(targets[-1], backing=layers.image, backing_format="qcow2")


def copy_to_own(source: Path, target: Path) -> None:
    """Copy a file; the copy can be written to, by its owner alone.

    Raises:
        HostCommandFailed: The copy failed, for instance for want of room.
    """
    copy_sparse(source, target)
    target.chmod(0o600)


def drop_snapshots(disk: Path, *, but: str = "") -> None:
    """Remove all snapshots but one from a qcow2 file that nobody has open.

    Raises:
        HostCommandFailed: qemu-img failed.
        ImageError: It is no disk.
    """
    for name in info(disk, disk_format="qcow2").snapshots:
        if name != but:
            drop_snapshot(disk, name)
