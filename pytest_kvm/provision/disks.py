"""Makes a machine's disk files: overlays on images, host files and templates; copies; blank disks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_kvm.images.image import Image
from pytest_kvm.images.qemu_img import (
    copy_sparse,
    copy_with_snapshots,
    create_blank,
    create_clone_overlay,
    create_overlay,
)
from pytest_kvm.render.plan import DiskPlan
from pytest_kvm.sizes import parse_kib
from pytest_kvm.spec.disk import Disk, DiskFormat
from pytest_kvm.spec.guest import GuestSpec

FrozenDisk = tuple[Path, DiskFormat]
"""Path and format of a template's disk, which is never written to."""


def new_disks(spec: GuestSpec, image: Image, *, seed: Path, folder: Path) -> list[DiskPlan]:
    """Make the disks of a cold boot: the root disk first, the seed last.

    Raises:
        ImageError: qemu-img refused a file.
    """
    root = folder / "root.qcow2"
    create_overlay(root, backing=image.disk, size=_bytes(spec.root_size, field="GuestSpec.root_size"))
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
    size = _bytes(disk.size, field="Disk.size")
    if disk.file is not None:
        create_overlay(path, backing=Path(disk.file), size=size)
    else:
        create_blank(path, size=size or 0, disk_format=disk.format)
    return _planned_disk(disk, path, "qcow2" if disk.file is not None else disk.format)


def _planned_disk(disk: Disk, path: Path, disk_format: DiskFormat) -> DiskPlan:
    return DiskPlan(path=path, format=disk_format, bus=disk.bus, serial=disk.serial, readonly=disk.readonly)


def _bytes(size: str | None, *, field: str) -> int | None:
    return None if size is None else parse_kib(size, field=field) * 1024
