"""Extract the kernel and initrd of a root filesystem, for boots without firmware."""

from __future__ import annotations

import lzma
import shutil
import struct
from pathlib import Path

from pytest_kvm.host import command

_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ELF = b"\x7fELF"
_PVH_NOTE = b"Xen\x00"


def extract(rootfs: Path, *, kernel: Path, initrd: Path) -> None:
    """Copy a root filesystem's kernel and initrd.

    The kernel is unpacked if it has a PVH entry, by which QEMU starts an
    uncompressed kernel (docs: x86/boot, QEMU's ``-kernel``). Unpacking it here
    takes a tenth of a second once. A guest under TCG would need seconds for it
    in every boot.

    Args:
        rootfs: The root filesystem, whose /vmlinuz and /initrd.img are links;
            a lean one also has a smaller initrd for direct boot.
        kernel: The file to make.
        initrd: The file to make.
    """
    shutil.copyfile(rootfs / (rootfs / "vmlinuz").readlink(), kernel)
    direct = rootfs / "boot/initrd.direct"
    shutil.copyfile(direct if direct.exists() else rootfs / (rootfs / "initrd.img").readlink(), initrd)
    unpacked = kernel.with_name(kernel.name + ".elf")
    if _unpack(kernel, unpacked):
        unpacked.replace(kernel)


def _unpack(bzimage: Path, target: Path) -> bool:
    """Write the ELF file inside a bzImage to ``target``; say whether it has a PVH entry."""
    payload = _payload(bzimage.read_bytes())
    if payload.startswith(_XZ):
        target.write_bytes(lzma.LZMADecompressor().decompress(payload))
    elif payload.startswith(_ZSTD):
        packed = target.with_name(target.name + ".zst")
        # The four bytes behind the compressed stream hold the unpacked size.
        packed.write_bytes(payload[:-4])
        command.run(["zstd", "-q", "-d", "-f", packed, "-o", target], timeout=60)
        packed.unlink()
    else:
        return False
    head = target.read_bytes()
    return head.startswith(_ELF) and _PVH_NOTE in head


def _payload(image: bytes) -> bytes:
    """Return the compressed kernel (Linux' Documentation/arch/x86/boot.rst).

    The setup header says how many sectors of real-mode code come first, and at
    which offset behind them the compressed kernel begins.
    """
    if image[0x202:0x206] != b"HdrS":
        return b""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length]
