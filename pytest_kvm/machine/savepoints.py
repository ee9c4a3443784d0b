"""Takes, restores and drops savepoints: memory, devices and all writable disks of guests together.

A savepoint of several guests is of one moment: no guest remembers what another
has yet to do. No frame passes from before the first guest is saved until the
last one is, so none is received in a savepoint that does not know of its sending.

The functions take machines, so that calling them does not count as a use of
the guests; the automatic reset calls them, too. What tests call is
:class:`~pytest_kvm.Savepoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pytest_kvm.at_once import do_at_once, raise_first
from pytest_kvm.errors import (
    HypervisorError,
    SavepointGone,
    SavepointRefused,
    SnapshotFailed,
    SwitchFailed,
)
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.host.resources import memory_saved_mib
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.joint_steps import JointSteps
from pytest_kvm.machine.renewal import prestart, renew

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.machine.renewal import Prestarted


_LEFT_MIB = 16
"""Room on the disk that a savepoint leaves for what the guests write."""
_MAKE_ROOM = "make room, or choose another disk with --kvm-run-dir"


class Taken(NamedTuple):
    """What is known of one guest's part of a savepoint."""

    ran: bool
    """Whether the guest ran when it was taken."""
    prestarted: Prestarted | None
    """The renewal script that waits in it, if any."""
    is_by_hand: bool
    """Whether a test has taken it."""


# ------------------------------------------------------------ take


def take(machines: Sequence[Machine], name: str, *, by_hand: bool = False) -> None:
    """Take a savepoint of guests at one moment; of all or of none.

    Args:
        machines: As in :func:`take_possible`.
        name: As there.
        by_hand: As there.

    Raises:
        GuestGone: A guest has ended; nothing is done.
        SavepointRefused: The test has something at work in a guest (nothing is
            done), a disk cannot take part, or the host's has no room; the message names it.
        SnapshotFailed: QEMU failed.
        DomainFailed: QEMU has ended meanwhile.
        GuestError: A guest's clock could not be set.
        SwitchFailed: There are several guests, and the switch of their segments has ended.
            After each of these errors there is no savepoint, and the guests go on.
    """
    for machine in machines:
        check_can_be_saved(machine)
    outcomes = take_possible(machines, name, by_hand=by_hand)
    failures = [outcome for outcome in outcomes if outcome is not None]
    if failures:
        try:
            drop(machines, name)
        except HypervisorError as failure:
            failures.append(failure)
        raise_first(failures)


def take_possible(machines: Sequence[Machine], name: str, *, by_hand: bool = False) -> list[Exception | None]:
    """Take a savepoint, at one moment, of those guests that can be saved.

    SSH connections stay open. In a guest their sessions are part of the
    savepoint; after a restore they end as soon as the guest sends something.
    Frames between several guests that are on their way are lost.

    Args:
        machines: The guests; they go on afterwards, unless they are paused.
        name: A name that no other savepoint of these machines has.
        by_hand: Whether a test takes it.

    Returns:
        For each guest None, or why there is no savepoint of it.
    """
    taking = _Taking(machines, name, by_hand=by_hand)
    taking.each(check_can_be_saved)
    taking.check_room()
    taking.prestart()
    try:
        if len(taking.left) > 1:
            taking.stand_still()
        taking.each(taking.write)
    finally:
        taking.go_on()
    taking.renew()
    taking.drop_failed()
    return taking.outcomes()


def check_can_be_saved(machine: Machine) -> None:
    """Check that a guest has not ended, and that the test has nothing at work in it.

    Raises:
        GuestGone: The guest has ended.
        SavepointRefused: The test has something at work in the guest; the message names it.
    """
    machine.check_alive()
    if machine.at_work:
        raise SavepointRefused(
            f"{machine.name}: no savepoint, for the test has something at work in the guest: "
            + ", ".join(map(repr, machine.at_work)),
            resolution="end it first: stop() a process, close() a forwarded port",
        )


class _Taking(JointSteps):
    """The steps of :func:`take_possible`.

    Args:
        machines: As there.
        name: As there.
        by_hand: As there.
    """

    def __init__(self, machines: Sequence[Machine], name: str, *, by_hand: bool) -> None:
        super().__init__(machines)
        self._running = [each for each in machines if each.domain.state() is DomainState.RUNNING]
        self._name = name
        self._by_hand = by_hand
        self._prestarted: dict[str, Prestarted | None] = {}
        self._detached: list[Machine] = []
        self._paused: list[Machine] = []

    def check_room(self) -> None:
        """Leave out those whose memory the disk has no room for.

        QEMU would find out when the disk is full, and keep what it has written until then.
        """
        needed = _LEFT_MIB
        for machine in tuple(self.left):
            pid = machine.domain.pid
            needed += memory_saved_mib(pid) if pid is not None else 0
            if missing := why_no_space(machine.folder, mib=needed):
                refusal = f"{machine.name}: no savepoint, for the disk has no room for its memory: {missing}"
                self._fail(machine, SavepointRefused(refusal, resolution=_MAKE_ROOM))

    def prestart(self) -> None:
        """Have a renewal script wait in each guest that runs: it makes each restore faster."""

        def start_script(machine: Machine) -> None:
            self._prestarted[machine.name] = prestart(machine)

        self.each(start_script, of=self._running)

    def stand_still(self) -> None:
        """Let no frame pass between the guests, and pause those that run."""

        def detach(machine: Machine) -> None:
            self._detached.append(machine)  # first: a failure can leave some of its links detached
            machine.links.detach()

        def pause(machine: Machine) -> None:
            self._paused.append(machine)
            machine.domain.suspend()

        self.each(detach)
        self.each(pause, of=self._running)

    def write(self, machine: Machine) -> None:
        """Have QEMU write one guest."""
        machine.domain.take_snapshot(self._name)
        machine.savepoints[self._name] = Taken(
            ran=machine in self._running,
            prestarted=self._prestarted.get(machine.name),
            is_by_hand=self._by_hand,
        )

    def go_on(self) -> None:
        """Let all that stand still go on, together."""
        self.each(lambda machine: machine.links.attach(machine), of=self._detached, despite_failures=True)
        self.each(_resume_if_paused, of=self._paused, despite_failures=True)

    def renew(self) -> None:
        """Set the clocks, which stood still; and end the prestarted scripts outside of the savepoint."""
        started = [each for each in self._running if each.name in self._prestarted]
        self.each(
            lambda machine: renew(machine, prestarted=self._prestarted[machine.name]),
            of=started,
            despite_failures=True,
        )

    def drop_failed(self) -> None:
        """Drop what there is of a savepoint that something has failed for."""
        failed = [each for each in self._machines if each not in self.left]
        self.each(lambda machine: drop([machine], self._name), of=failed, despite_failures=True)


def _resume_if_paused(machine: Machine) -> None:
    if machine.domain.state() is DomainState.PAUSED:
        machine.domain.resume()


# ------------------------------------------------------------ restore


def restore(points: Sequence[tuple[Machine, str]]) -> None:
    """Take guests back to their savepoints, if this is possible for all of them.

    Args:
        points: As in :func:`restore_possible`.

    Raises:
        SavepointGone: A guest has ended; nothing is done.
        SavepointRefused: A guest's devices have changed since; nothing is done.
        SwitchFailed: The switch of their segments has ended; nothing is done.
        HostError: Somebody has removed a guest's folder; nothing is done.
        SnapshotFailed: QEMU failed for a guest, which is of no use any more.
        GuestError: A guest could not be renewed.
        DomainFailed: QEMU has ended.
            A failure of one guest after all were found fit leaves the others restored.
    """
    restoring = _Restoring(points)
    restoring.check()
    restoring.raise_failures()
    restoring.detach()
    if len(restoring.left) == len(points):
        restoring.load()
    restoring.go_on(are_attached=True)
    restoring.raise_failures()


def restore_possible(points: Sequence[tuple[Machine, str]]) -> list[Exception | None]:
    """Take guests back to their savepoints, let them go on together, and renew random numbers and clocks.

    What the test started since is gone from the guests, so its ends on the host
    are closed: SSH connections with their processes, and forwarded ports.
    Frames that are on their way are lost. A guest that was paused when its
    savepoint was taken is paused again, and renewed when :func:`resume` is called.

    Args:
        points: Each guest with the name given to :func:`take`.

    Returns:
        For each guest None, or what has failed. With :exc:`SavepointRefused` or
        :exc:`SwitchFailed` the guest is as it was, but cut off its segments. With
        another failure it has ended, or is of no use any more.
    """
    restoring = _Restoring(points)
    restoring.detach()
    restoring.check()
    restoring.load()
    restoring.go_on(are_attached=False)
    return restoring.outcomes()


class _Restoring(JointSteps):
    """The steps of :func:`restore` and :func:`restore_possible`.

    Args:
        points: As there.
    """

    def __init__(self, points: Sequence[tuple[Machine, str]]) -> None:
        super().__init__([machine for machine, _ in points])
        self._names = {machine.name: name for machine, name in points}
        self._usable = list(self.left)
        """Those that are loaded, or as they were."""
        self._loaded: list[Machine] = []
        self._due_to_run: list[Machine] = []

    def check(self) -> None:
        """Check that the guests live, and have the files and devices of then."""

        def check_can_be_restored(machine: Machine) -> None:
            if not machine.domain.alive():
                raise SavepointGone(
                    f"{machine.name} has ended ({machine.domain.end_reason()}), and its savepoints with it",
                    resolution="let the guest run on: a savepoint lasts as long as its QEMU",
                )
            machine.check_folder()
            machine.domain.check_snapshot(self._names[machine.name])

        self.each(check_can_be_restored)

    def detach(self) -> None:
        """Let no frame pass."""
        self.each(lambda machine: machine.links.detach())

    def load(self) -> None:
        """Have QEMU load the guests; each stays paused."""
        self.each(self._load)

    def go_on(self, *, are_attached: bool) -> None:
        """Let all go on together: those that are loaded, and those that are as they were.

        Args:
            are_attached: Whether those that are as they were are attached to their segments again.
        """
        attached = self._usable if are_attached else self._loaded
        self.each(lambda machine: machine.links.attach(machine), of=attached, despite_failures=True)
        self.each(lambda machine: machine.domain.resume(), of=self._due_to_run, despite_failures=True)
        renewed = [each for each in self._loaded if each in self._due_to_run]
        self.each(lambda machine: _renew(machine, self._savepoint_of(machine).prestarted), of=renewed)

    def _savepoint_of(self, machine: Machine) -> Taken:
        return machine.savepoints[self._names[machine.name]]

    def _load(self, machine: Machine) -> None:
        ran = machine.domain.state() is DomainState.RUNNING
        try:
            machine.links.drop_frames(machine)
            machine.domain.load_snapshot(self._names[machine.name])
        except (SavepointRefused, SwitchFailed):  # the guest is as it was, but may be paused
            if ran and machine.domain.state() is DomainState.PAUSED:
                self._due_to_run.append(machine)
            machine.carriers.set_again(machine.domain)
            raise
        except SnapshotFailed:
            self._usable.remove(machine)
            raise
        self._loaded.append(machine)
        if self._savepoint_of(machine).ran:
            self._due_to_run.append(machine)
        machine.carriers.set_again(machine.domain)
        _close_ends(machine)


def _close_ends(machine: Machine) -> None:
    """Close the host's ends of what is gone from a guest that was loaded."""
    machine.renewal_due.set()
    machine.kernel.note_restore()
    machine.hosts_file.forget()
    for thing in machine.open_resources.all():
        thing.close()
    machine.shell.close()


def _renew(machine: Machine, prestarted: Prestarted | None) -> None:
    renew(machine, prestarted=prestarted)
    machine.renewal_due.clear()


def resume(machine: Machine) -> None:
    """Let a paused guest run again, and renew it if it was restored to a savepoint of the paused guest.

    Raises:
        DomainFailed: It runs, or has ended.
        GuestError: The guest could not be renewed.
    """
    machine.domain.resume()
    if machine.renewal_due.is_set():
        _renew(machine, None)


# ------------------------------------------------------------ drop


def drop(machines: Sequence[Machine], name: str) -> None:
    """Forget a savepoint and free its space, which is not done in guests that are off."""
    holders = [each for each in machines if name in each.savepoints and each.domain.alive()]
    for machine in holders:
        del machine.savepoints[name]
    do_at_once([partial(machine.domain.drop_snapshot, name) for machine in holders])


def drop_later(machine: Machine, name: str) -> None:
    """Drop the savepoints that tests have taken after another one, to which the guest was reset."""
    names = list(machine.savepoints)
    later = names[names.index(name) + 1 :]
    by_hand = [each for each in later if machine.savepoints[each].is_by_hand]
    for each in by_hand:
        del machine.savepoints[each]
    drop_former(machine, by_hand)


def drop_former(machine: Machine, names: Iterable[str]) -> None:
    """Free the space of savepoints that the disks of a guest hold, and that are forgotten already."""
    for name in names:
        try:
            machine.domain.drop_snapshot(name)
        except HypervisorError as failure:
            machine.log.warning("%s: its disks keep the savepoint %s: %s", machine.name, name, failure.brief)
