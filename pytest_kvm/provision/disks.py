"""Makes a machine's disk files: overlays on images, host files and templates; copies; blank disks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_kvm.errors import SpecError
from pytest_kvm.images.image import Image
from pytest_kvm.images.qemu_img import (
    copy_sparse,
    copy_with_snapshots,
    create_blank,
    create_clone_overlay,
    create_overlay,
    info,
)
from pytest_kvm.render.plan import DiskPlan
from pytest_kvm.sizes import binary_size, parse_kib
from pytest_kvm.spec.disk import Disk, DiskFormat
from pytest_kvm.spec.guest import GuestSpec

FrozenDisk = tuple[Path, DiskFormat]
"""Path and format of a template's disk, which is never written to."""


def new_disks(spec: GuestSpec, image: Image, *, seed: Path, folder: Path) -> list[DiskPlan]:
    """Make the disks of a cold boot: the root disk first, the seed last.

    Raises:
        HostCommandFailed: qemu-img failed.
        ImageError: A file of the host is no disk image.
        SpecError: A disk would be smaller than what it shows.
    """
    root = folder / "root.qcow2"
    size = _grown(spec.root_size, least=image.virtual_size, field="GuestSpec.root_size")
    create_overlay(root, backing=image.disk, size=size)
    extra = [_new_disk(disk, folder / f"disk{number}") for number, disk in enumerate(spec.disks, start=1)]
    return [DiskPlan(path=root, format="qcow2"), *extra, DiskPlan(path=seed, format="raw", readonly=True)]


def overlays_of(spec: GuestSpec, frozen: Sequence[FrozenDisk], *, seed: Path, folder: Path) -> list[DiskPlan]:
    """Make a clone's disks: overlays on the template's disks.

    Args:
        spec: The guest's spec.
        frozen: The template's disks in the order of :func:`new_disks`, without the seed.
        seed: The template's seed ISO.
        folder: Where the overlays go.

    Raises:
        HostCommandFailed: qemu-img refused a file.
    """
    plans: list[DiskPlan] = []
    for disk, (backing, backing_format) in zip((None, *spec.disks), frozen, strict=True):
        path = folder / f"{backing.stem}.qcow2"
        create_clone_overlay(path, backing=backing, backing_format=backing_format)
        plans.append(
            DiskPlan(path=path, format="qcow2") if disk is None else _planned_disk(disk, path, "qcow2")
        )
    return [*plans, DiskPlan(path=seed, format="raw", readonly=True)]


def copies_of(spec: GuestSpec, frozen: Sequence[FrozenDisk], *, seed: Path, folder: Path) -> list[DiskPlan]:
    """Make a clone's disks: copies of the template's disks, with the snapshots that they hold.

    Args:
        spec: The guest's spec.
        frozen: The template's disks in the order of :func:`new_disks`, without the seed.
        seed: The seed ISO that the clone reads.
        folder: Where the copies go.

    Raises:
        HostCommandFailed: A file could not be copied.
    """
    plans: list[DiskPlan] = []
    for disk, (source, kind) in zip((None, *spec.disks), frozen, strict=True):
        path = folder / source.name
        (copy_with_snapshots if kind == "qcow2" else copy_sparse)(source, path)
        plans.append(DiskPlan(path=path, format=kind) if disk is None else _planned_disk(disk, path, kind))
    return [*plans, DiskPlan(path=seed, format="raw", readonly=True)]


def _new_disk(disk: Disk, path: Path) -> DiskPlan:
    if disk.file is not None:
        file = Path(disk.file)
        least = 0 if disk.size is None else info(file).virtual_size
        create_overlay(path, backing=file, size=_grown(disk.size, least=least, field="Disk.size"))
    else:
        create_blank(path, size=parse_kib(disk.size, field="Disk.size") * 1024, disk_format=disk.format)
    return _planned_disk(disk, path, "qcow2" if disk.file is not None else disk.format)


def _planned_disk(disk: Disk, path: Path, disk_format: DiskFormat) -> DiskPlan:
    return DiskPlan(path=path, format=disk_format, bus=disk.bus, serial=disk.serial, readonly=disk.readonly)


def _grown(size: str | None, *, least: int, field: str) -> int | None:
    """Return the size of a disk in bytes; None: as that of what it shows.

    Args:
        size: What the spec says.
        least: Bytes of what it shows. A guest would see only the begin of it on a smaller disk.
        field: Where the size stands, for the message.

    Raises:
        SpecError: It is too small.
    """
    if size is None:
        return None
    found = parse_kib(size, field=field) * 1024
    if found < least:
        raise SpecError(
            f"{field}: {size!r} is less than {binary_size(least)}, the size of what the disk shows",
            resolution="a disk can only grow: give it a larger size, or leave the field out",
        )
    return found
