"""What is large and kept of a guest only if it is asked for: its memory, its disks, or all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed, SavepointRefused
from pytest_kvm.host.artifact_folder import DISKS, FROZEN, MEMORY
from pytest_kvm.host.disk_space import check_room
from pytest_kvm.host.ssh_keys import write_private
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.images.disk_layers import copy_as_one, layers_of
from pytest_kvm.machine.frozen_guest import LEFT_MIB, freeze
from pytest_kvm.render.thawed_xml import disks_of, other_disks_of

if TYPE_CHECKING:
    from pytest_kvm.host.artifact_folder import ArtifactFolder
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.settings import Dump

_MEMORY_FILE = "memory.elf"
_MIB = 1024**2
_one_at_a_time = threading.Lock()
"""So that each finds the room that it has been promised."""


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
    with _one_at_a_time, _standing_still(machine):
        for kind, (name, keep) in ways.items():
            if kind in what:
                folder.write_together(name, partial(keep, machine))


@contextmanager
def _standing_still(machine: Machine) -> Generator[None]:
    ran = machine.domain.alive() and machine.domain.state() is DomainState.RUNNING
    if ran:
        try:
            machine.domain.suspend()
        except DomainFailed:
            if machine.domain.alive():
                raise
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
    needed = (found["base-memory"] + found.get("plugged-memory", 0)) // _MIB
    check_room([(folder, needed + LEFT_MIB)], what=f"no room for the memory of {machine.name}")
    machine.domain.dump_memory(write_private(folder / _MEMORY_FILE, b""))


def _freeze(machine: Machine, folder: Path) -> None:
    _check_alive(machine)
    freeze(machine, folder)


def _copy_disks(machine: Machine, folder: Path) -> None:
    """Copy what the guest can write to; the other disks hold nothing of its own."""
    xml = machine.domain.xml()
    if others := other_disks_of(xml):
        raise SavepointRefused(
            f"{machine.name} has a disk that cannot be copied, as it is no file: {others[0]}"
        )
    written = [disk for disk in disks_of(xml) if disk.is_written]
    disks = [layers_of(disk.file, disk_format=disk.format) for disk in written]
    needed = sum(disk.taken_mib for disk in disks) + LEFT_MIB
    check_room([(folder, needed)], what=f"no room for the disks of {machine.name}")
    for number, layers in enumerate(disks):
        copy_as_one(layers, folder / f"disk{number}.{layers.formats[0]}")
