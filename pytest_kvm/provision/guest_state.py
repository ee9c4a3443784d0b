"""Takes and restores the state of guests for their undo logs: by savepoints, or by new machines."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from pytest_kvm.at_once import in_thread, outcomes_at_once
from pytest_kvm.errors import (
    DomainFailed,
    GuestError,
    GuestGone,
    SavepointRefused,
    SnapshotFailed,
    SwitchFailed,
)
from pytest_kvm.machine import savepoints
from pytest_kvm.provision.restorable_state import Point, Restored, Traffic

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.guest_links import GuestLinks
    from pytest_kvm.provision.guest_machines import GuestMachines

_log = logging.getLogger("pytest_kvm.provision")
_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Saved:
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
        self.machines = machines
        self._links = links
        self._base = object()
        self._traffic_at_base: Traffic | None = None
        machines.when_ready(self._note_base)

    @property
    def base(self) -> Point:
        """The state in which the guest became ready."""
        return self._base

    @property
    def traffic_at_base(self) -> Traffic | None:
        """The frames that had passed when the guest became ready; None: it is not ready yet."""
        return self._traffic_at_base

    def _note_base(self) -> None:
        try:
            self._traffic_at_base = self._links.traffic()
        except (SwitchFailed, GuestGone) as failure:  # the next use of a guest on a segment raises it
            _log.info("nobody knows which frames have passed: %s", failure)

    def reaches(self, point: Point) -> bool:
        """Say whether a point can still be restored; a savepoint ends with its QEMU process."""
        if not isinstance(point, _Saved):
            return point is self._base
        return point.machine is self.machines.current.machine and point.machine.domain.alive()

    def drop(self, point: Point) -> None:
        """Drop a savepoint, unless it is gone already.

        If it cannot be dropped, a warning is logged, for nothing more follows from it.
        """
        if isinstance(point, _Saved) and self.reaches(point):
            del point.machine.savepoints[point.name]
            savepoints.drop_former(point.machine, [point.name])

    def traffic(self) -> Traffic:
        """Return how many frames have passed by which guests can have changed each other."""
        return self._links.traffic()

    def detach(self) -> None:
        """Let the guest and its neighbours exchange no frames until it is restored."""
        self._links.detach()

    def take_all(self, states: Sequence[Self]) -> list[Point | Exception]:
        """Take savepoints, at one moment, of those guests that can be saved."""
        name = f"kvm-{next(_numbers)}"
        found = outcomes_at_once([partial(_machine_to_save, state) for state in states])
        machines = [each for each in found if not isinstance(each, Exception)]
        failures = iter(savepoints.take_possible(machines, name))
        return [
            each if isinstance(each, Exception) else next(failures) or _Saved(machine=each, name=name)
            for each in found
        ]

    def restore_all(self, points: Sequence[tuple[Self, Point]]) -> list[Restored | Exception]:
        """Take guests back to points; those that savepoints are loaded into go on together."""
        for state, _ in points:
            state.detach()
        found = outcomes_at_once([partial(_saved_at, state, point) for state, point in points])
        outcomes: dict[GuestState, Restored | Exception] = {}
        loads: dict[GuestState, _Saved] = {}
        begins: list[GuestState] = []
        for (state, _), saved in zip(points, found, strict=True):
            if isinstance(saved, Exception):
                outcomes[state] = saved
            elif saved is None:
                begins.append(state)
            else:
                loads[state] = saved
        loading = in_thread(partial(_load, loads))
        begun = outcomes_at_once([partial(_begin_anew, state) for state in begins])
        outcomes |= zip(begins, begun, strict=True)
        outcomes |= loading.result()
        return [_keep_detached(state, outcomes[state]) for state, _ in points]


def _machine_to_save(state: GuestState) -> Machine:
    machine = state.machines.current.machine
    if not machine.domain.alive():
        raise SavepointRefused(
            f"{machine.name} is off ({machine.domain.end_reason()})",
            resolution="have what switched it off switch it on again",
        )
    return machine


def _saved_at(state: GuestState, point: Point) -> _Saved | None:
    """Return the savepoint that is the point; None if another machine has to be started for it.

    Raises:
        SnapshotFailed: The point cannot be reached any more.
    """
    current = state.machines.current
    if not state.reaches(point):
        raise SnapshotFailed(f"{current.machine.name}: a savepoint of a machine that is gone")
    if isinstance(point, _Saved):
        return point
    if current.base is None or not current.machine.domain.alive():
        return None
    return _Saved(machine=current.machine, name=current.base)


def _keep_detached(state: GuestState, outcome: Restored | Exception) -> Restored | Exception:
    """Cut a guest off for good that could not be restored; it may have been attached before it failed."""
    if isinstance(outcome, Exception) and not isinstance(outcome, GuestGone):
        try:
            state.detach()
        except SwitchFailed as failure:
            return failure
    return outcome


def _load(loads: Mapping[GuestState, _Saved]) -> dict[GuestState, Restored | Exception]:
    """Load savepoints, and have the guests go on together."""
    begun = time.monotonic()
    failures = savepoints.restore_possible([(saved.machine, saved.name) for saved in loads.values()])
    seconds = time.monotonic() - begun
    outcomes: dict[GuestState, Restored | Exception] = {}
    for (state, saved), failure in zip(loads.items(), failures, strict=True):
        if failure is None:
            savepoints.drop_later(saved.machine, saved.name)
            saved.machine.kernel.note_undone()
            outcomes[state] = Restored("load", seconds)
        elif saved.name == state.machines.current.base and isinstance(
            failure, SnapshotFailed | GuestError | DomainFailed
        ):
            # The next reset would fail as well, so the machine cannot be used any more.
            _log.warning("%s: begun anew, for it could not be put back: %s", saved.machine.name, failure)
            [outcomes[state]] = outcomes_at_once([partial(_begin_anew, state)])
        else:
            outcomes[state] = failure
    return outcomes


def _begin_anew(state: GuestState) -> Restored:
    """Have another machine, started like the guest's first one, take the place of its current one."""
    begun = time.monotonic()
    tier = state.machines.start_another()
    return Restored(tier, time.monotonic() - begun)
