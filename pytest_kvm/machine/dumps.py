"""What is large and kept of a guest only if it is asked for: its memory, its disks, or all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed, NoCapacity
from pytest_kvm.host.artifact_folder import DISKS, FROZEN, MEMORY
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.host.ssh_keys import write_private
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.images.disk_layers import copy_as_one, layers_of
from pytest_kvm.machine.frozen_guest import freeze
from pytest_kvm.render.thawed_xml import disks_of

if TYPE_CHECKING:
    from pytest_kvm.host.artifact_folder import ArtifactFolder
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.settings import Dump

_MEMORY_FILE = "memory.elf"
_MIB = 1024**2
_LEFT_MIB = 64
"""Room on a disk that is left for what guests write."""


def keep_dumps(machine: Machine, folder: ArtifactFolder, *, what: Collection[Dump]) -> None:
    """Keep what is asked for, all of the same moment; the guest stands still meanwhile.

    What cannot be kept is noted in the folder.

    Args:
        machine: The guest's machine. Of one that has ended, only the disks can be kept.
        folder: Where it goes.
        what: What is asked for.

    Raises:
        DomainFailed: QEMU does not answer.
    """
    ways: dict[Dump, tuple[str, Callable[[Machine, Path], None]]] = {
        "memory": (MEMORY, _dump_memory),
        "disk": (DISKS, _copy_disks),
        "guest": (FROZEN, _freeze),
    }
    with _standing_still(machine):
        for kind, (name, keep) in ways.items():
            if kind in what:
                folder.write_together(name, partial(keep, machine))


@contextmanager
def _standing_still(machine: Machine) -> Generator[None]:
    ran = machine.domain.alive() and machine.domain.state() is DomainState.RUNNING
    if ran:
        machine.domain.suspend()
    try:
        yield
    finally:
        if ran and machine.domain.alive():
            machine.domain.resume()


def _check_alive(machine: Machine) -> None:
    if not machine.domain.alive():
        raise DomainFailed(f"{machine.name} has ended: {machine.domain.end_reason()}")


def _dump_memory(machine: Machine, folder: Path) -> None:
    _check_alive(machine)
    found: dict[str, int] = machine.domain.qmp("query-memory-size-summary")
    _check_room(machine, folder, mib=(found["base-memory"] + found.get("plugged-memory", 0)) // _MIB)
    machine.domain.dump_memory(write_private(folder / _MEMORY_FILE, b""))


def _freeze(machine: Machine, folder: Path) -> None:
    _check_alive(machine)
    freeze(machine, folder)


def _copy_disks(machine: Machine, folder: Path) -> None:
    """Copy what the guest can write to; the other disks hold nothing of its own."""
    disks = [layers_of(disk.file) for disk in disks_of(machine.domain.xml()) if disk.is_written]
    _check_room(machine, folder, mib=sum(disk.taken_mib for disk in disks))
    for number, layers in enumerate(disks):
        copy_as_one(layers, folder / f"disk{number}.{layers.formats[0]}")


def _check_room(machine: Machine, folder: Path, *, mib: int) -> None:
    if why := why_no_space(folder, mib=mib + _LEFT_MIB):
        raise NoCapacity(f"{machine.name}: no room for the dump: {why}")
