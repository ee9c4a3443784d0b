"""Make a disk from a root filesystem; it boots by BIOS, by UEFI, and directly with a kernel file."""

from __future__ import annotations

import struct
from pathlib import Path

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
    install_bios(toolbox, disk, uuid=uuid, first_sector=_BIOS_AT // SECTOR)
    install_efi(
        toolbox, disk, uuid=uuid, first_sector=_ESP_AT // SECTOR, sectors=(_ROOT_AT - _ESP_AT) // SECTOR
    )


SECTOR = 512

_BIOS = "/usr/lib/grub/i386-pc"
_EFI = "/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
_MODULES = [
    "biosdisk",
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "configfile",
    "normal",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
    "gzio",
]

# Offsets in boot.img and diskboot.img: grub-core/boot/i386/pc/{boot,diskboot}.S
# and include/grub/i386/pc/boot.h (GRUB_BOOT_MACHINE_*) of GRUB 2.
_BOOT_CODE_END = 440
_KERNEL_SECTOR = 0x5C
_DRIVE_CHECK = 0x66
"""Offset of a jump over the check of the drive number, which some BIOSes pass wrongly for a hard disk;
like grub-bios-setup(8) we overwrite the jump."""
_NOP_NOP = b"\x90\x90"
_BLOCK_LIST = SECTOR - 12
_LOAD_SEGMENT = 0x820


def menu(uuid: str, cmdline: str) -> str:
    """Return grub.cfg of the root file system: one entry, started at once."""
    return (
        "serial --unit=0 --speed=115200\n"
        "terminal_input serial console\n"
        "terminal_output serial console\n"
        "set timeout=0\n"
        "menuentry Linux {\n"
        f"  search --no-floppy --fs-uuid --set=root {uuid}\n"
        f"  linux /vmlinuz {cmdline}\n"
        "  initrd /initrd.img\n"
        "}\n"
    )


def _find_menu(uuid: str) -> str:
    return f"search --no-floppy --fs-uuid --set=root {uuid}\nconfigfile ($root)/boot/grub/grub.cfg\n"


def install_bios(toolbox: Toolbox, disk: Path, *, uuid: str, first_sector: int) -> None:
    """Write GRUB's boot sector, and its core at ``first_sector``.

    This replaces grub-bios-setup(8), which cannot work on a plain file.
    """
    work = disk.parent
    (work / "find.cfg").write_text(_find_menu(uuid))
    toolbox.run(
        [
            "grub-mkimage", "--format=i386-pc", f"--directory={_BIOS}", "--prefix=/boot/grub",
            f"--config={WORK / 'find.cfg'}", f"--output={WORK / 'core.img'}", *_MODULES,
        ],
        rootfs=work,
        work=work,
    )  # fmt: skip
    core = bytearray((work / "core.img").read_bytes())
    sectors = -(-len(core) // SECTOR)
    struct.pack_into("<QHH", core, _BLOCK_LIST, first_sector + 1, sectors - 1, _LOAD_SEGMENT)
    boot = bytearray(toolbox.read(f"{_BIOS}/boot.img"))
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, first_sector)
    boot[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NOP_NOP
    with disk.open("r+b") as file:
        file.write(boot[:_BOOT_CODE_END])
        file.seek(first_sector * SECTOR)
        file.write(core)


def install_efi(toolbox: Toolbox, disk: Path, *, uuid: str, first_sector: int, sectors: int) -> None:
    """Make the EFI system partition: GRUB at the path for removable media."""
    work = disk.parent
    (work / "find.cfg").write_text(_find_menu(uuid))
    volume = f"{WORK / disk.name}@@{first_sector * SECTOR}"
    for argv in (
        [
            "mformat",
            "-i",
            volume,
            "-T",
            str(sectors),
            "-h",
            "64",
            "-s",
            "32",
            "-v",
            "ESP",
            "-N",
            "50544b56",
            "::",
        ],
        ["mmd", "-i", volume, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"],
        ["mcopy", "-i", volume, _EFI, "::/EFI/BOOT/BOOTX64.EFI"],
        ["mcopy", "-i", volume, str(WORK / "find.cfg"), "::/EFI/debian/grub.cfg"],
    ):
        toolbox.run(argv, rootfs=work, work=work)
