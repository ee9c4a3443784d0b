"""What on this machine decides whether a guest that was saved can go on: programs, firmware, processor.

All of it is looked up in files; nothing is started.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FIRMWARE = tuple(
    Path("/usr/share", name)
    for name in ("seabios", "OVMF", "edk2/ovmf", "edk2/x64", "qemu/firmware", "qemu/ovmf-x86_64")
)
"""Where distributions keep what QEMU loads into a guest's memory before its first instruction."""
_OF_A_PROCESSOR = {"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"}


def stamp(path: Path) -> str:
    """Return a file's path, size and time of change, which tell one build of it from another.

    Neither inode nor ``ctime``: a package manager unpacks the same on every
    machine, so a cache that is carried to another one still fits.
    """
    try:
        found = path.stat()
    except OSError:
        return f"{path} is not there"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def firmware_stamps(folders: tuple[Path, ...] = _FIRMWARE) -> tuple[str, ...]:
    """Return the stamps of all firmware files, in order."""
    stamps: list[str] = []
    for folder in folders:
        with suppress(OSError):  # most distributions have some of the folders
            stamps += [stamp(path) for path in folder.iterdir()]
    return tuple(sorted(stamps))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what tells this machine's processor, its microcode and its features from another's."""
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError:
        return "unknown"
    fields = (line.partition(":") for line in first.splitlines())
    return "; ".join(
        f"{name.strip()}={value.strip()}" for name, _, value in fields if name.strip() in _OF_A_PROCESSOR
    )


def kernel() -> str:
    """Return the release of this machine's kernel: what KVM can do for a guest comes with it."""
    return os.uname().release
