"""Choose where a template's RAM file is: in the entry's folder, or in memory.

``/dev/shm`` is memory on every Linux system (``shm_overview(7)``). If a RAM
file is there, the entry has a link to the file, and the marker of the file's
folder names the entry. So a sweep can find the files whose entry is gone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvm.host import folder_marker
from pytest_kvm.host.resources import disk_free_mib, memory_available_mib, memory_total_mib
from pytest_kvm.settings import RamPlace

RAM = "ram"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder of our own is made in it
_KEPT_FREE = 0.25
"""Share of the host's memory that has to stay free after a RAM file was written."""
_log = logging.getLogger("pytest_kvm.boot_cache")


@dataclass(frozen=True, kw_only=True)
class RamFilePlace:
    """Where a RAM file is to be written."""

    path: Path
    note: str = ""
    """Why the RAM file is not where the setting wants it; else empty."""


def choose_place(entry: Path, place: RamPlace, *, mib: int) -> RamFilePlace:
    """Choose a RAM file's place; if that is in memory, make an empty file there and the link to it.

    Args:
        entry: The entry's folder.
        place: The place that the setting asks for.
        mib: Size that the file may have, in MiB.
    """
    own = entry / RAM
    if place == "disk":
        return RamFilePlace(path=own)
    refusal = _refusal(mib)
    if refusal:
        return RamFilePlace(path=own, note=refusal)
    folder = _MEMORY / f"{_prefix()}{entry.name}"
    try:
        folder_marker.make(folder, entry=str(entry.absolute()), mounts=_mount_namespace())
        # If the link led to a missing file, QEMU would try for ever to make it (file_ram_open()
        # in softmmu/physmem.c: ENOENT without O_CREAT, EEXIST with O_EXCL).
        (folder / RAM).touch(mode=0o600)
    except OSError as error:
        return RamFilePlace(path=own, note=f"{folder} cannot be made: {error.strerror}")
    own.symlink_to(folder / RAM)
    return RamFilePlace(path=own)


def sweep() -> None:
    """Remove from memory this user's RAM files whose entry is gone, whichever store the entry was in."""
    for folder in garbage():
        try:
            folder_marker.remove(folder)
        except (OSError, ValueError) as problem:  # another store's sweep may be removing it, too
            _log.warning("%s cannot be removed: %s", folder, problem)


def garbage() -> list[Path]:
    """Return the folders in memory with RAM files of this user whose entry is gone."""
    folders = sorted(_MEMORY.glob(f"{_prefix()}*"))
    return [folder for folder in folders if _is_garbage(folder_marker.marker_of(folder) or {})]


def _is_garbage(about: Mapping[str, Any]) -> bool:
    """Say whether the entry of a RAM file is gone; it may be there where only another container sees it."""
    entry = about.get("entry")
    if not isinstance(entry, str) or os.path.lexists(entry):
        return False
    ours = _mount_namespace()
    return about.get("mounts", ours) == ours or Path(entry).parent.is_dir()


def _mount_namespace() -> str:
    return str(Path("/proc/self/ns/mnt").readlink())


def _prefix() -> str:
    return f"pytest-kvm-{os.getuid()}-"


def _refusal(mib: int) -> str:
    """Return why the file cannot be in memory; empty if it can."""
    if not _MEMORY.is_dir():
        return f"there is no {_MEMORY}"
    free = min(memory_available_mib(), disk_free_mib(_MEMORY))
    kept = int(memory_total_mib() * _KEPT_FREE)
    if free - mib < kept:
        return f"{free} MiB of memory are free, and after {mib} MiB {kept} MiB of them have to be left"
    return ""
