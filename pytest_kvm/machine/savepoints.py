"""Back to an earlier point, in place: memory, devices and all writable disks together.

The functions take a machine and so are no use of the guest; the automatic
reset is made of them, too. :class:`Savepoint` is the same by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_kvm.errors import GuestGone, SavepointGone, SavepointRefused
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
        name: Not taken on this machine yet.

    Raises:
        GuestGone: The guest has ended.
        SavepointRefused: The test has something at work in the guest, or a
            disk cannot take part; the message names it.
        SnapshotFailed: QEMU failed, for instance for want of room.
        GuestError: Its clock could not be set; the savepoint is there.
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
    # What waits in the savepoint makes each return to it faster.
    prestarted = prestart(machine)
    try:
        machine.domain.take_snapshot(name)
        machine.savepoints[name] = prestarted
    finally:
        # The clock stood still while QEMU wrote. And the prestarted script must not wait on in
        # the guest that runs: the one to be renewed is in the savepoint.
        renew(machine, prestarted=prestarted)


def restore(machine: Machine, name: str) -> None:
    """Put a guest back, and make it a guest of now.

    What the test started since then is gone from the guest, so that its ends
    on the host are closed: SSH connections with their processes, and ports.
    The kernel's random numbers and the clock are renewed.

    Args:
        machine: The guest; runs afterwards if it ran when the savepoint was taken.
        name: As given to :func:`take`.

    Raises:
        SavepointGone: The guest has ended.
        SavepointRefused: Its devices have changed since; nothing is done.
        SnapshotFailed: QEMU failed; the guest is of no use any more.
        GuestError: It could not be renewed.
    """
    if not machine.domain.alive():
        raise SavepointGone(
            f"{machine.name} has ended ({machine.domain.end_reason()}), and its savepoints with it",
            resolution="let the guest run on: a savepoint lasts as long as its QEMU",
        )
    machine.domain.load_snapshot(name)
    for thing in machine.open_resources.all():
        thing.close()
    machine.shell.close()
    if machine.domain.state() is DomainState.PAUSED:
        machine.renewal_due.set()
    else:
        machine.renewal_due.clear()
        renew(machine, prestarted=machine.savepoints.get(name))


def renew_if_due(machine: Machine) -> None:
    """Renew a guest that was put back to where it was paused, now that it runs.

    Raises:
        GuestError: It could not be done.
    """
    if machine.renewal_due.is_set():
        renew(machine)
        machine.renewal_due.clear()


def drop(machine: Machine, name: str) -> None:
    """Forget a savepoint and free its space; of a guest that has ended nothing is left to free."""
    machine.savepoints.pop(name, None)
    if machine.domain.alive():
        machine.domain.drop_snapshot(name)


class Savepoint:
    """A point that a guest can be put back to, as :meth:`Guest.savepoint` returns it.

    It can be restored any number of times, also to before or after other
    savepoints. A context manager: leaving it restores and drops it.

    Args:
        name: How messages call it.
        tag: How the hypervisor calls it.
        machine: What it was taken on.
        use: Returns what the guest consists of now, and counts as a use of it.
    """

    def __init__(self, name: str, *, tag: str, machine: Machine, use: Callable[[], Machine]) -> None:
        self.name = name
        self._tag = tag
        self._machine = machine
        self._use = use
        self._dropped = False

    def restore(self) -> None:
        """Put memory, devices and all writable disks back to how they were.

        Processes started since then and ports forwarded since then are gone.
        The console's log keeps what was printed meanwhile.

        Raises:
            SavepointGone: It was dropped, or the guest has ended or been reset meanwhile.
            SavepointRefused: Devices were plugged in or unplugged since; nothing is done.
        """
        if self._dropped:
            raise SavepointGone(f"{self._machine.name}: {self.name} was dropped")
        if self._use().domain is not self._machine.domain:
            raise SavepointGone(
                f"{self._machine.name}: {self.name} went with the machine it was taken on: "
                "the guest was reset meanwhile",
                resolution="take the savepoint in the test or fixture that restores it",
            )
        restore(self._machine, self._tag)

    def drop(self) -> None:
        """Forget it and free its space in the disks; else it goes with the guest. Idempotent."""
        if not self._dropped:
            self._dropped = True
            drop(self._machine, self._tag)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore and drop; a guest that ended in a block that failed is not asked for."""
        if self._dropped or (error is not None and not self._machine.domain.alive()):
            return
        try:
            self.restore()
        finally:
            self.drop()

    def __repr__(self) -> str:
        return f"<Savepoint {self.name} of {self._machine.name}{', dropped' if self._dropped else ''}>"
