"""Describes what decides whether a saved guest can run here: programs, firmware, processor, kernel.

No program is started for that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FIRMWARE = tuple(
    Path("/usr/share", name)
    for name in ("seabios", "OVMF", "edk2/ovmf", "edk2/x64", "qemu/firmware", "qemu/ovmf-x86_64")
)
"""Where distributions keep firmware: what QEMU loads into a guest's memory before its first instruction."""
_OF_A_PROCESSOR = {"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"}


def stamp(path: Path) -> str:
    """Return a file's path, size and modification time, which differ between two builds of the file.

    Inode and ``ctime`` are left out. The rest is the same on every machine
    where a package manager unpacked the file, so a cache that is carried to
    another machine still fits.
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
    """Return the model, microcode and features of this machine's processor, as one line."""
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError:
        return "unknown"
    fields = (line.partition(":") for line in first.splitlines())
    return "; ".join(
        f"{name.strip()}={value.strip()}" for name, _, value in fields if name.strip() in _OF_A_PROCESSOR
    )


def kernel() -> str:
    """Return the release of this machine's kernel, on which depends what KVM can do for a guest."""
    return os.uname().release
