"""Takes, restores and drops savepoints: memory, devices and all writable disks of a guest together.

The functions take a machine, so that calling them does not count as a use of
the guest; the automatic reset calls them, too. :class:`Savepoint` is for tests
that restore a guest themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_kvm.errors import (
    DomainFailed,
    GuestGone,
    HypervisorError,
    SavepointGone,
    SavepointRefused,
    SnapshotFailed,
)
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.renewal import prestart, renew

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine


def take(machine: Machine, name: str) -> None:
    """Take a savepoint.

    SSH connections stay open. In the guest their sessions are part of the
    savepoint; after a restore they end as soon as the guest sends something.

    Args:
        machine: The guest; it goes on afterwards, unless it is paused.
        name: A name that no other savepoint of this machine has.

    Raises:
        GuestGone: The guest has ended.
        SavepointRefused: The test has something at work in the guest, or a
            disk cannot take part; the message names it.
        SnapshotFailed: QEMU failed, for instance because the disk is full.
        GuestError: The guest's clock could not be set; the savepoint was taken.
    """
    if not machine.domain.alive():
        raise GuestGone(f"{machine.name} has ended: {machine.domain.end_reason()}")
    at_work = [*machine.shell.processes, *machine.open_resources.all()]
    if at_work:
        raise SavepointRefused(
            f"{machine.name}: no savepoint, for the test has something at work in the guest: "
            + ", ".join(map(repr, at_work)),
            resolution="end it first: stop() a process, close() a forwarded port",
        )
    if machine.domain.state() is not DomainState.RUNNING:
        machine.domain.take_snapshot(name)
        machine.savepoints[name] = None
        return
    # A renewal script that waits in the savepoint makes each restore faster.
    prestarted = prestart(machine)
    try:
        machine.domain.take_snapshot(name)
        machine.savepoints[name] = prestarted
    finally:
        # The guest's clock stood still while QEMU wrote. And the renewal ends the prestarted
        # script in the running guest, where it is not needed: only the one in the savepoint is.
        renew(machine, prestarted=prestarted)


def restore(machine: Machine, name: str) -> None:
    """Take a guest back to a savepoint, and renew its random numbers and clock.

    What the test started since the savepoint is gone from the guest, so its
    ends on the host are closed: SSH connections with their processes, and
    forwarded ports. A guest that was paused when the savepoint was taken is
    paused again, and renewed when it is resumed (:func:`renew_if_due`).

    Args:
        machine: The guest; runs afterwards if it ran when the savepoint was taken.
        name: As given to :func:`take`.

    Raises:
        SavepointGone: The guest has ended.
        SavepointRefused: The guest's devices have changed since; nothing is done.
        SnapshotFailed: QEMU failed; the guest is of no use any more.
        GuestError: The guest could not be renewed.
    """
    if not machine.domain.alive():
        raise SavepointGone(
            f"{machine.name} has ended ({machine.domain.end_reason()}), and its savepoints with it",
            resolution="let the guest run on: a savepoint lasts as long as its QEMU",
        )
    machine.domain.load_snapshot(name)
    try:
        machine.carriers.set_again(machine.domain)
    except DomainFailed as failure:
        raise SnapshotFailed(
            f"{machine.name}: the carriers of its cards cannot be set: {failure.brief}"
        ) from failure
    machine.hosts_file.forget()
    for thing in machine.open_resources.all():
        thing.close()
    machine.shell.close()
    if machine.domain.state() is DomainState.PAUSED:
        machine.renewal_due.set()
    else:
        machine.renewal_due.clear()
        renew(machine, prestarted=machine.savepoints.get(name))


def renew_if_due(machine: Machine) -> None:
    """Renew a guest that has just been resumed, if a savepoint of a paused guest was restored before.

    Raises:
        GuestError: The guest could not be renewed.
    """
    if machine.renewal_due.is_set():
        renew(machine)
        machine.renewal_due.clear()


def drop(machine: Machine, name: str) -> None:
    """Forget a savepoint and free its space, which is not done while the guest is off."""
    if machine.domain.alive():
        machine.savepoints.pop(name, None)
        machine.domain.drop_snapshot(name)


def drop_former(machine: Machine, names: Iterable[str]) -> None:
    """Free the space of savepoints that the disks of a guest hold and that went with its former QEMU."""
    for name in names:
        try:
            machine.domain.drop_snapshot(name)
        except HypervisorError as failure:
            machine.log.warning("%s: its disks keep the savepoint %s: %s", machine.name, name, failure.brief)


class Savepoint:
    """A state that a guest can be taken back to, as :meth:`Guest.savepoint` returns it.

    It can be restored any number of times, also when earlier or later
    savepoints were restored meanwhile. It is a context manager: leaving the
    block restores and drops it.

    Args:
        name: Its name in messages.
        tag: Its name in the hypervisor.
        machine: The machine that it was taken on.
        use: Returns the guest's present machine; a call counts as a use of the guest.
    """

    def __init__(self, name: str, *, tag: str, machine: Machine, use: Callable[[], Machine]) -> None:
        self.name = name
        self._tag = tag
        self._machine = machine
        self._use = use
        self._dropped = False

    def restore(self) -> None:
        """Take memory, devices and all writable disks back to how they were.

        Processes started since then and ports forwarded since then are gone.
        The console's log keeps what was printed meanwhile.

        Raises:
            SavepointGone: The savepoint was dropped, or the guest has ended or been reset meanwhile.
            SavepointRefused: Devices were plugged in or unplugged since; nothing is done.
        """
        if self._dropped:
            raise SavepointGone(f"{self._machine.name}: {self.name} was dropped")
        if self._use().domain is not self._machine.domain:
            raise SavepointGone(
                f"{self._machine.name}: {self.name} went with the QEMU it was taken in: "
                "the guest was reset, or switched off, meanwhile",
                resolution="take the savepoint in the test or fixture that restores it",
            )
        restore(self._machine, self._tag)

    def drop(self) -> None:
        """Forget the savepoint and free its space in the disks; a second call does nothing.

        A savepoint that is not dropped goes when the guest ends.
        """
        if not self._dropped:
            self._dropped = True
            drop(self._machine, self._tag)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore and drop, unless it was dropped already, or the block failed and the guest has ended."""
        if self._dropped or (error is not None and not self._machine.domain.alive()):
            return
        try:
            self.restore()
        finally:
            self.drop()

    def __repr__(self) -> str:
        return f"<Savepoint {self.name} of {self._machine.name}{', dropped' if self._dropped else ''}>"
