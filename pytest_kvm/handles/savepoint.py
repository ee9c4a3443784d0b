"""``Savepoint``: a state of guests that a test can take them back to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_kvm.errors import HypervisorError, SavepointGone
from pytest_kvm.handles.transcript import Transcript, noting_all
from pytest_kvm.machine.savepoints import drop, restore

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

_log = logging.getLogger("pytest_kvm.savepoints")


class Savepoint:
    """A state of one guest, or of several at one moment, that can be restored.

    It can be restored any number of times, also when earlier or later
    savepoints were restored meanwhile. It is a context manager: leaving the
    block restores and drops it.

    Args:
        name: Its name in messages.
        tag: Its name in the hypervisor.
        machines: The machines that it was taken on.
        use: Returns the guests' present machines; a call counts as a use of the guests.
        transcripts: Of the guests.
    """

    def __init__(
        self,
        name: str,
        *,
        tag: str,
        machines: Sequence[Machine],
        use: Callable[[], Sequence[Machine]],
        transcripts: Sequence[Transcript],
    ) -> None:
        self.name = name
        self._tag = tag
        self._machines = tuple(machines)
        self._use = use
        self._transcripts = transcripts
        self._is_dropped = False

    @property
    def is_dropped(self) -> bool:
        """Whether it was dropped, by hand or because a guest was reset."""
        living = [machine for machine in self._machines if machine.domain.alive()]
        return self._is_dropped or any(self._tag not in machine.savepoints for machine in living)

    def restore(self) -> None:
        """Take memory, devices and all writable disks back to how they were.

        Processes started since then and ports forwarded since then are gone.
        The console's log keeps what was printed meanwhile.

        Raises:
            SavepointGone: The savepoint was dropped, or a guest has ended or been reset
                meanwhile; nothing is done.
            SavepointRefused: Devices were plugged in or unplugged since; nothing is done.
            SwitchFailed: A guest is on a segment, and the switch has ended; nothing is done.
            SnapshotFailed: QEMU failed for a guest, which is of no use any more.
            DomainFailed: QEMU has ended.
            GuestError: A guest's clock could not be set.
                A failure of one guest in the midst of the work leaves the others restored.
        """
        with noting_all(self._transcripts, f"restore() of {self.name!r}"):
            self._restore()

    def _restore(self) -> None:
        if self._is_dropped:
            raise SavepointGone(f"{self._guests}: {self.name} was dropped")
        for machine, now in zip(self._machines, self._use(), strict=True):
            is_kept = self._tag in machine.savepoints or not machine.domain.alive()
            if now.domain is not machine.domain or not is_kept:
                raise SavepointGone(
                    f"{machine.name}: {self.name} is gone: the guest was reset, or switched off, meanwhile",
                    resolution="take the savepoint in the test or fixture that restores it",
                )
        restore([(machine, self._tag) for machine in self._machines])

    def drop(self) -> None:
        """Forget the savepoint and free its space in the disks; a second call does nothing.

        A savepoint that is not dropped goes when the guests end.
        """
        if not self._is_dropped:
            self._is_dropped = True
            drop(self._machines, self._tag)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore and drop, unless it was dropped already.

        It is not restored if the block has failed and a guest has ended.
        """
        if self._is_dropped:
            return
        has_ended = not all(machine.domain.alive() for machine in self._machines)
        try:
            if error is None or not has_ended:
                self.restore()
        finally:
            try:
                self.drop()
            except HypervisorError as failure:
                if error is None:
                    raise
                _log.warning("%r: its space is not free yet: %s", self, failure)

    def __repr__(self) -> str:
        return f"<Savepoint {self.name} of {self._guests}{', dropped' if self._is_dropped else ''}>"

    @property
    def _guests(self) -> str:
        return ", ".join(machine.name for machine in self._machines)
