"""Install GRUB for BIOS and UEFI on a disk file, without mounting it."""

from __future__ import annotations

import struct
from pathlib import Path

from pytest_kvm.images.toolbox import WORK, Toolbox

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
