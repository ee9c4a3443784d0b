"""A guest's disk and the files below it, which it shows where it was not written to; copies of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.host.resources import disk_taken_mib
from pytest_kvm.images.image_store import digest_in_store
from pytest_kvm.images.qemu_img import (
    copy_sparse,
    copy_with_snapshots,
    drop_snapshot,
    info,
    point_at,
    rebase,
)


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


def layers_of(disk: Path) -> DiskLayers:
    """Return a disk's files.

    Raises:
        ImageError: One of them is gone, or is no disk.
    """
    files: list[Path] = []
    formats: list[str] = []
    below: Path | None = disk
    while below is not None:
        if digest_in_store(below) is not None:
            break
        found = info(below)
        files.append(below)
        formats.append(found.format)
        below = (below.parent / found.backing_file).resolve() if found.backing_file else None
    return DiskLayers(files=tuple(files), formats=tuple(formats), image=below)


def copy_as_one(layers: DiskLayers, target: Path) -> None:
    """Copy what a disk holds into one file, which needs nothing but the image, and has no snapshots.

    Raises:
        HostCommandFailed: The copy failed, for instance for want of room.
        ImageError: qemu-img cannot read it.
    """
    top, *between = layers.files
    _copy(top, target, disk_format=layers.formats[0])
    if layers.formats[0] == "qcow2":
        drop_snapshots(target)
    if between:
        rebase(target, backing=layers.image)


def copy_all(layers: DiskLayers, targets: list[Path]) -> None:
    """Copy all files of a disk, with their snapshots; each copy names the one below it by its name alone.

    Raises:
        HostCommandFailed: A copy failed, for instance for want of room.
        ImageError: qemu-img cannot read one.
    """
    for source, target, disk_format in zip(layers.files, targets, layers.formats, strict=True):
        _copy(source, target, disk_format=disk_format)
    for target, below, disk_format in zip(targets, targets[1:], layers.formats[1:], strict=False):
        point_at(target, backing=Path(below.name), backing_format=disk_format)


def drop_snapshots(disk: Path, *, but: str = "") -> None:
    """Remove all snapshots but one from a qcow2 file that nobody has open.

    Raises:
        HostCommandFailed: qemu-img failed.
        ImageError: It is no disk.
    """
    for name in info(disk).snapshots:
        if name != but:
            drop_snapshot(disk, name)


def _copy(source: Path, target: Path, *, disk_format: str) -> None:
    (copy_with_snapshots if disk_format == "qcow2" else copy_sparse)(source, target)
