"""How much of the run folder's disk a machine needs at least, and what is said if that is missing.

Nobody knows how much a guest will write, so only that is asked for without which
it cannot become ready. A guest that meets a full disk later ends; see
:class:`~pytest_kvm.hypervisor.lifecycle.Lifecycle`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.host.disk_space import check_space, full_disk_in_words, why_no_space
from pytest_kvm.provision.template_build import TemplateFacts

if TYPE_CHECKING:
    from pytest_kvm.boot_cache.template import Template

CLONE_MIB = 16
"""Clones of the lean image have written 4 MiB when they are ready."""
COLD_BOOT_MIB = 64
"""A cold boot of the lean image writes 9 MiB; systems with more services write a few times that."""
_BLOCK = 512
"""Bytes of the unit of ``st_blocks``; see stat(2)."""
_RESOLUTION = (
    "free some disk space (`pytest-kvm gc` lists what killed runs have left), "
    "or choose another disk with --kvm-run-dir"
)


def needed_mib(template: Template | None) -> int:
    """Return the MiB that a clone of a template needs, or a machine that boots (None)."""
    if template is None:
        return COLD_BOOT_MIB
    facts = TemplateFacts.from_json(template.manifest.facts)
    if facts.tier == "cow":
        return CLONE_MIB
    copied = sum(template.path(name).stat().st_blocks * _BLOCK for name, _ in facts.disks)
    return CLONE_MIB + copied // (1024 * 1024)


def has_disk_room(folder: Path, *, mib: int) -> bool:
    """Say whether a run folder's disk has room for a machine that needs this much."""
    return not why_no_space(folder, mib=mib)


def check_disk_room(folder: Path, guest: str, *, mib: int) -> None:
    """Check that a run folder's disk has room for a machine of a guest.

    Raises:
        NoCapacity: It has not.
    """
    check_space(folder, mib=mib, what=f"{guest}: no room on the disk", resolution=_RESOLUTION)


def run_disk_full_in_words(folder: Path, what: str) -> AbstractContextManager[None]:
    """Have a block that writes to a run folder say so if the disk is full.

    Raises:
        NoCapacity: The block has met a full disk.
    """
    return full_disk_in_words(folder, what=what, resolution=_RESOLUTION)
