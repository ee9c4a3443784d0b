"""``Lab``: several guests that are saved, put back, paused and resumed together."""

from __future__ import annotations

import itertools
from functools import partial

from pytest_kvm.at_once import do_at_once
from pytest_kvm.errors import SavepointGone, SpecError
from pytest_kvm.handles.guest import Guest
from pytest_kvm.handles.savepoint import Savepoint
from pytest_kvm.handles.segment import Segment
from pytest_kvm.handles.transcript import noting_all, transcript_of
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.savepoints import resume, take

_numbers = itertools.count(1)


class Lab:
    """Several guests as one, with the verbs that a single guest has for its state.

    Args:
        members: Guests; and segments, each of which stands for all guests on it when a verb is called.

    Raises:
        SpecError: There are no members, or one is neither.
    """

    def __init__(self, *members: Guest | Segment) -> None:
        for member in members:
            if not isinstance(member, Guest | Segment):
                raise SpecError(f"lab: {member!r} is neither a guest nor a segment")
        if not members:
            raise SpecError("lab: no guests", resolution="name guests, or a segment that they are on")
        self._members = members
        self._taken: list[Savepoint] = []

    def __repr__(self) -> str:
        return f"<Lab of {', '.join(guest.name for guest in self.guests)}>"

    @property
    def guests(self) -> tuple[Guest, ...]:
        """The guests, each once, in the order in which they were named."""
        guests: list[Guest] = []
        for member in self._members:
            guests += member.guests if isinstance(member, Segment) else [member]
        return tuple(dict.fromkeys(guests))

    def savepoint(self, name: str | None = None) -> Savepoint:
        """Take a savepoint of all guests at one moment.

        All guests are stopped before the first is saved, and go on together.
        Frames that are on their way between them are lost, now and at each
        restore. A guest that is not of the lab, but on its segments, keeps what
        it has been told since.

        Args:
            name: Name of the savepoint in messages; it need not be unique.

        Returns:
            The savepoint, with ``restore()`` and ``drop()`` for all guests; a context manager that does both.

        Raises:
            GuestGone: A guest has ended.
            SavepointRefused: One guest cannot be saved as it is now; the message names it and the cause.
            SnapshotFailed: QEMU failed for one of them.
            DomainFailed: QEMU has ended meanwhile.
            GuestError: A guest's clock could not be set afterwards.
            SwitchFailed: The switch of their segments has ended.
            SpecError: There are no guests on the lab's segments.
                After each of these errors there is no savepoint, and the guests go on.
        """
        guests = self._some_guests()
        transcripts = list(map(transcript_of, guests))
        number = next(_numbers)
        name, tag = name or f"lab savepoint {number}", f"lab-{number}"
        with noting_all(transcripts, f"lab.savepoint({name!r})"):
            machines = _use(guests)
            take(machines, tag, by_hand=True)
        savepoint = Savepoint(
            name, tag=tag, machines=machines, use=partial(_use, guests), transcripts=transcripts
        )
        self._taken.append(savepoint)
        return savepoint

    def restore(self) -> None:
        """Restore the newest savepoint of this lab that was not dropped.

        Raises:
            SavepointGone: There is none, or a guest has ended or been reset meanwhile; nothing is done.
            SavepointRefused: Devices were plugged in or unplugged since; nothing is done.
            SwitchFailed: The switch of their segments has ended; nothing is done.
            SnapshotFailed: QEMU failed for a guest, which is of no use any more.
            DomainFailed: QEMU has ended.
            GuestError: A guest's clock could not be set.
                A failure of one guest in the midst of the work leaves the others restored.
        """
        self._taken = [savepoint for savepoint in self._taken if not savepoint.is_dropped]
        if not self._taken:
            raise SavepointGone(f"{self!r} has no savepoint", resolution="take one: lab.savepoint()")
        self._taken[-1].restore()

    def pause(self) -> None:
        """Stop the processors of all guests at the same time; commands hang until :meth:`resume`.

        Raises:
            GuestGone: A guest has ended; nothing is done.
        """
        with noting_all(map(transcript_of, self.guests), "lab.pause()"):
            do_at_once([machine.domain.suspend for machine in self._living()])

    def resume(self) -> None:
        """Let the processors of all guests that are paused run again.

        Raises:
            GuestGone: A guest has ended; nothing is done.
            GuestError: A guest that was restored to a savepoint of the paused guest could not be renewed.
        """
        with noting_all(map(transcript_of, self.guests), "lab.resume()"):
            machines = self._living()
            paused = [machine for machine in machines if machine.domain.state() is DomainState.PAUSED]
            do_at_once([partial(resume, machine) for machine in paused])

    def _some_guests(self) -> tuple[Guest, ...]:
        guests = self.guests
        if not guests:
            raise SpecError("lab: there are no guests on its segments")
        return guests

    def _living(self) -> list[Machine]:
        """Return the guests' machines, none of which has ended; this counts as a use of each guest."""
        machines = _use(self._some_guests())
        for machine in machines:
            machine.check_alive()
        return machines


def _use(guests: tuple[Guest, ...]) -> list[Machine]:
    """Return the guests' present machines, once all are ready; this counts as a use of each guest."""
    return [guest.machine for guest in guests]


def lab(*members: Guest | Segment) -> Lab:
    """Return several guests as one lab, to be saved, put back, paused and resumed together.

    Args:
        members: Guests; and segments, each of which stands for all guests that are on it.

    Raises:
        SpecError: There are no members, or one is neither.
    """
    return Lab(*members)
