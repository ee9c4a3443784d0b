"""Takes and restores the state of one guest for its undo log: by savepoints, or by a new machine."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed, GuestError, SavepointRefused, SnapshotFailed
from pytest_kvm.machine import savepoints
from pytest_kvm.provision.events import Tier
from pytest_kvm.provision.restorable_state import Point

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.guest_links import GuestLinks
    from pytest_kvm.provision.guest_machines import GuestMachines


@dataclass(frozen=True, eq=False, kw_only=True)
class _TakenPoint:
    """A savepoint in the disks of one machine."""

    machine: Machine
    name: str


class GuestState:
    """Implements :class:`pytest_kvm.provision.restorable_state.RestorableState`.

    The state in which a guest became ready (``base``) needs no savepoint if the
    guest is a clone: another clone of the same template takes its place behind
    the guest's handle. After a cold boot there is a savepoint of that state.

    Args:
        machines: The guest's machines.
        links: The guest's links to its segments.
    """

    def __init__(self, machines: GuestMachines, *, links: GuestLinks) -> None:
        self._machines = machines
        self._links = links
        self._base = object()
        self._numbers = itertools.count(1)

    @property
    def base(self) -> Point:
        """The state in which the guest became ready."""
        return self._base

    def take(self) -> Point:
        """Take a savepoint of memory and all writable disks, in place."""
        machine = self._machines.current.machine
        if not machine.domain.alive():
            raise SavepointRefused(
                f"{machine.name} is off ({machine.domain.end_reason()})",
                resolution="have what switched it off switch it on again",
            )
        name = f"kvm-{next(self._numbers)}"
        savepoints.take([machine], name)
        return _TakenPoint(machine=machine, name=name)

    def restore(self, point: Point) -> Tier:
        """Take the guest back to a point."""
        if point is self._base:
            return self._restore_base()
        current = self._machines.current.machine
        if not isinstance(point, _TakenPoint) or point.machine is not current:
            raise SnapshotFailed(f"{current.name}: a savepoint of a machine that is gone")
        _load(current, point.name)
        return "load"

    def reaches(self, point: Point) -> bool:
        """Say whether a point can still be restored; a savepoint ends with its QEMU process."""
        if not isinstance(point, _TakenPoint):
            return point is self._base
        return point.machine is self._machines.current.machine and point.machine.domain.alive()

    def drop(self, point: Point) -> None:
        """Drop a savepoint; those of a former machine are gone already."""
        if isinstance(point, _TakenPoint) and point.machine is self._machines.current.machine:
            savepoints.drop([point.machine], point.name)

    @property
    def is_ready(self) -> bool:
        """Whether the guest has become ready."""
        return self._machines.is_ready

    def reached(self) -> int:
        """Return how many frames have come from other guests that can have changed this one."""
        return self._links.reached()

    def detach(self) -> None:
        """Let the guest and its neighbours exchange no frames until it is restored."""
        self._links.detach()

    def _restore_base(self) -> Tier:
        current = self._machines.current
        if current.base is None or not current.machine.domain.alive():
            return self._machines.start_another()
        try:
            _load(current.machine, current.base)
        except (SnapshotFailed, GuestError, DomainFailed) as failure:
            # The next reset would fail as well, so the machine cannot be used any more.
            current.request.log.warning(
                "%s: begun anew, for it could not be put back: %s", current.request.name, failure
            )
            return self._machines.start_another()
        return "load"


def _load(machine: Machine, name: str) -> None:
    [failure] = savepoints.restore_possible([(machine, name)])
    if failure is not None:
        raise failure
    savepoints.drop_later(machine, name)
