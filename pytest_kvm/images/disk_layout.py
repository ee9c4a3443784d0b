"""Make a disk from a root filesystem; it boots by BIOS, by UEFI, and directly with a kernel file."""

from __future__ import annotations

from pathlib import Path

from pytest_kvm.images import bootloader
from pytest_kvm.images.bootloader import SECTOR
from pytest_kvm.images.toolbox import ROOTFS, WORK, Toolbox

VIRTUAL_SIZE = 8 * 1024**3
"""Bytes the guest sees; the file holds only what is used."""
LABEL = "rootfs"

_MIB = 1024**2
_BIOS_AT, _ESP_AT, _ROOT_AT, _END_GAP = 1 * _MIB, 2 * _MIB, 18 * _MIB, 1 * _MIB
_FILE_SYSTEM = (
    # Have mke2fs write all tables now; else the guest would write them in the background after its boot.
    "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
)


def _partitions(uuid: str) -> str:
    """Return the script for sfdisk(8); partitions have the numbers that Debian's own cloud images use."""
    root_sectors = (VIRTUAL_SIZE - _ROOT_AT - _END_GAP) // SECTOR
    return (
        f"label: gpt\nlabel-id: {uuid}\nunit: sectors\nsector-size: {SECTOR}\n"
        f"14 : start={_BIOS_AT // SECTOR}, size={(_ESP_AT - _BIOS_AT) // SECTOR}, "
        "type=21686148-6449-6E6F-744E-656564454649\n"
        f"15 : start={_ESP_AT // SECTOR}, size={(_ROOT_AT - _ESP_AT) // SECTOR}, "
        "type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
        f"1 : start={_ROOT_AT // SECTOR}, size={root_sectors}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    )


def make(toolbox: Toolbox, rootfs: Path, *, disk: Path, uuid: str) -> None:
    """Write a raw disk with a root filesystem and both boot loaders.

    Args:
        toolbox: Disk programs of the release.
        rootfs: Folder that becomes the root file system.
        disk: The raw file to make, sparse; its folder also gets the working files.
        uuid: UUID of the root file system.

    Raises:
        HostCommandFailed: The files do not fit, or a program failed.
    """
    with disk.open("wb") as file:
        file.truncate(VIRTUAL_SIZE)
    toolbox.run(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", WORK / disk.name],
        rootfs=rootfs,
        work=disk.parent,
        text=_partitions(uuid),
    )
    kib = (VIRTUAL_SIZE - _ROOT_AT - _END_GAP) // 1024
    toolbox.run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-U", uuid, "-m", "1", "-J", "size=32",
            "-e", "remount-ro", "-E", f"{_FILE_SYSTEM},hash_seed={uuid},offset={_ROOT_AT}",
            "-d", ROOTFS, WORK / disk.name, f"{kib}k",
        ],
        rootfs=rootfs,
        work=disk.parent,
    )  # fmt: skip
    bootloader.install_bios(toolbox, disk, uuid=uuid, first_sector=_BIOS_AT // SECTOR)
    bootloader.install_efi(
        toolbox, disk, uuid=uuid, first_sector=_ESP_AT // SECTOR, sectors=(_ROOT_AT - _ESP_AT) // SECTOR
    )
