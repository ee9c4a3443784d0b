"""How much of the run folder's disk a machine needs at least, and what is said if that is missing.

Nobody knows how much a guest will write, so only that is asked for without which
it cannot become ready. A guest that meets a full disk later ends; see
:class:`~pytest_kvm.hypervisor.lifecycle.Lifecycle`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.disk_space import full_disk_in_words
from pytest_kvm.host.resources import disk_taken_mib
from pytest_kvm.provision.template_build import TemplateFacts

if TYPE_CHECKING:
    from pytest_kvm.boot_cache.template import Template

CLONE_MIB = 16
"""Clones of the lean image have written 4 MiB when they are ready."""
COLD_BOOT_MIB = 64
"""A cold boot of the lean image writes 9 MiB; systems with more services write a few times that."""
LEFT_BY_SPARES_MIB = 256
"""What a spare clone leaves for guests that are in use."""
_RESOLUTION = (
    "free some disk space (`pytest-kvm gc` lists what killed runs have left), "
    "or choose another disk with --kvm-run-dir, for the boot cache with --kvm-cache-dir"
)


def needed_mib(template: Template | None) -> int:
    """Return the MiB that a clone of a template needs, or a machine that boots (None)."""
    if template is None:
        return COLD_BOOT_MIB
    is_copied = TemplateFacts.from_json(template.manifest.facts).tier == "snapshot"
    return CLONE_MIB + (disks_mib(template) if is_copied else 0)


def disks_mib(template: Template) -> int:
    """Return how much (MiB) copies of a template's disks take."""
    facts = TemplateFacts.from_json(template.manifest.facts)
    return disk_taken_mib(template.path(name) for name, _ in facts.disks)


def no_disk_room(guest: str, why: str) -> NoCapacity:
    """Return the error of a guest that a run folder's disk has no room for."""
    return NoCapacity(f"{guest}: no room on the disk: {why}", resolution=_RESOLUTION)


def run_disk_full_in_words(folder: Path, what: str) -> AbstractContextManager[None]:
    """Have a block that writes to a run folder say so if the disk is full.

    Raises:
        NoCapacity: The block has met a full disk.
    """
    return full_disk_in_words(folder, what=what, resolution=_RESOLUTION)
