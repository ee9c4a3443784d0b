"""The faults of a run's segments: set on behalf of the owner at work, undone when that owner has ended.

A fault changes guests as a command in them does, also by the frames that do not
come. So all guests that frames from the segment can reach count as changed by
the owner.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed, GuestGone, SpecError, SwitchFailed
from pytest_kvm.handles.condition import Condition, name_of
from pytest_kvm.handles.fault import Fault, Stretch
from pytest_kvm.handles.guest import running_machine
from pytest_kvm.provision.guest_links import set_carrier

if TYPE_CHECKING:
    from pytest_kvm.handles.fault_verbs import FaultableSegment
    from pytest_kvm.handles.segment import GuestNic
    from pytest_kvm.handles.segment_backend import SegmentBackend
    from pytest_kvm.provision.reset_coordinator import ResetCoordinator
    from pytest_kvm.provision.undo_log import Owner


_log = logging.getLogger("pytest_kvm.segments")


class SegmentFaults:
    """Implements :class:`pytest_kvm.handles.fault.FaultControl` for all segments of a run.

    Any thread of a test may begin and undo faults.

    Args:
        coordinator: Knows the owner at work, and resets guests.
        seed: Makes the faults' random choices repeatable; None: the run chooses one.
    """

    def __init__(self, coordinator: ResetCoordinator, *, seed: str | None = None) -> None:
        self.seed = secrets.token_hex(4) if seed is None else seed
        self._coordinator = coordinator
        self._lock = threading.RLock()
        self._active: dict[Fault, _Active] = {}
        self._begun: defaultdict[Owner | None, list[Fault]] = defaultdict(list)
        """By owner, all faults that it has begun, also those that are undone."""
        self._holds: dict[GuestNic, dict[object, bool]] = {}
        """By card, what faults want of its cable (True: plugged in); the last one decides."""

    def forget(self, segment: FaultableSegment) -> None:
        """Undo the faults of a segment, which is about to be removed.

        Raises:
            Exception: Whatever a function raised; the other faults are undone.
        """
        with self._lock:
            self._undo_all(self.active(segment))

    def active(self, segment: FaultableSegment) -> list[Fault]:
        """Return the faults of a segment that are not undone, the oldest first."""
        with self._lock:
            return [fault for fault, active in self._active.items() if active.segment is segment]

    def at_work(self) -> list[Fault]:
        """Return the faults that the owner at work has to do with: those of others, and all of its own."""
        owner = self._coordinator.owner
        with self._lock:
            others = [fault for fault, active in self._active.items() if active.owner is not owner]
            return [*others, *self._begun.get(owner, ())]

    # ------------------------------------------------------------ verbs

    def disturb(
        self,
        segment: FaultableSegment,
        kind: str,
        *,
        words: str,
        on: Sequence[Stretch],
        settings: Mapping[str, float],
    ) -> Fault:
        """Apply a fault to frames."""
        with self._setting(segment) as steps_back:
            backend, owner = segment.backend, self._coordinator.owner
            # Of the owner's faults, not of the run's: a test that runs alone meets the same chances.
            before = len(self._begun.get(owner, ()))
            chances = [self.seed, "" if owner is None else owner.name, before, segment.name, kind]
            for stretch in on:
                number = backend.fault(
                    kind,
                    link=stretch.link,
                    direction=stretch.direction,
                    seed="/".join(map(str, [*chances, stretch])),
                    settings=settings,
                )
                steps_back.callback(backend.undo, number)
            is_random = "probability" in settings or bool(settings.get("jitter"))
            return self._begin(segment, words, steps_back=steps_back, on=on, is_random=is_random)

    def drop(self, segment: FaultableSegment, condition: Condition, *, on: Sequence[Stretch]) -> Fault:
        """Drop the frames that a condition is true of."""
        words = f"drop({name_of(condition)})"
        begin = segment.backend.dropping(condition)
        with self._setting(segment) as steps_back:
            for stretch in on:
                number = begin(stretch.link, stretch.direction)
                steps_back.callback(segment.backend.undo, number)
            return self._begin(segment, words, steps_back=steps_back, on=on)

    def cut(
        self,
        segment: FaultableSegment,
        words: str,
        *,
        groups: Sequence[Sequence[GuestNic]],
        joins_others: bool,
    ) -> Fault:
        """Let frames pass only between cards of the same group."""

        def make() -> int:
            here = segment.nics
            links = [[nic.link for nic in group if nic in here] for group in groups]
            return segment.backend.cut(links, joins_others=joins_others)

        with self._setting(segment) as steps_back:
            cut = _RepeatableCut(make, unmake=segment.backend.undo)
            steps_back.callback(cut.unmake)
            return self._begin(segment, words, steps_back=steps_back, cut=cut)

    def heal(self, segment: FaultableSegment) -> None:
        """Undo all cuts; those of another owner are made again when the owner at work has ended."""
        with self._lock:
            owner = self._coordinator.owner
            cuts = [
                (fault, active.cut, active.owner is owner)
                for fault, active in self._active.items()
                if active.segment is segment and active.cut is not None and active.cut.is_made
            ]
            for fault, _, is_own in reversed(cuts):
                if is_own:
                    fault.undo()
            others = [(fault, cut) for fault, cut, is_own in cuts if not is_own]
            if others or segment.is_removed:
                with self._setting(segment) as steps_back:
                    for fault, cut in others:
                        steps_back.callback(self._make_again, fault, cut)
                        cut.unmake()
                    self._begin(segment, "heal", steps_back=steps_back)

    def set_cables(self, segment: FaultableSegment, nics: Sequence[GuestNic], *, plugged_in: bool) -> Fault:
        """Plug cables in, or unplug them."""
        for nic in nics:
            nic.guest.wait_ready()
        words = f"{'plug' if plugged_in else 'unplug'} {', '.join(nic.link for nic in nics)}"
        holder = object()
        with self._setting(segment) as steps_back:
            for nic in nics:
                steps_back.callback(self._let_go, nic, holder)
                self._hold(nic, holder, plugged_in=plugged_in)
            return self._begin(segment, words, steps_back=steps_back)

    # ------------------------------------------------------------ from begin to end

    @contextmanager
    def _setting(self, segment: FaultableSegment) -> Generator[ExitStack]:
        """Yield a stack for the steps that undo a fault; they are done at once if the block fails.

        As before each verb of a guest, changes of owners that have ended are undone first.
        """
        with self._lock, ExitStack() as steps_back:
            owner = self._coordinator.owner
            if segment.is_removed:
                raise SpecError(f"the segment {segment.name} was removed")
            if owner is not None and owner.ended:
                raise SpecError(f"{segment.name}: {owner.name} has ended, and can begin no fault any more")
            self._coordinator.before_fault(segment.guests)
            yield steps_back

    def _begin(
        self,
        segment: FaultableSegment,
        words: str,
        *,
        steps_back: ExitStack,
        on: Sequence[Stretch] = (),
        is_random: bool = False,
        cut: _RepeatableCut | None = None,
    ) -> Fault:
        """Keep what undoes a fault, which is set now."""
        owner = self._coordinator.owner
        place = ", ".join(filter(None, map(str, on)))
        words = f"{segment.name}: {words}{f' on {place}' if place else ''}"
        fault = Fault(words, undo=self._undo, is_random=is_random)
        if owner is not None and owner not in self._begun:
            owner.on_end.callback(self._end, owner)
        self._begun[owner].append(fault)
        self._active[fault] = _Active(segment=segment, owner=owner, steps_back=steps_back.pop_all(), cut=cut)
        _log.info("%s", fault)
        return fault

    def _undo(self, fault: Fault) -> None:
        """Undo a fault; if another owner than the fault's does so, this changes guests on its behalf."""
        with self._lock:
            active = self._active.pop(fault, None)
            if active is None:
                return
            is_own = active.owner is self._coordinator.owner or (active.owner and active.owner.ended)
            try:
                if not (is_own or active.segment.is_removed):
                    self._coordinator.before_fault(active.segment.guests)
            finally:
                _log.info("%s", fault)
                active.steps_back.close()

    def _end(self, owner: Owner) -> None:
        """Undo all faults of an owner, which has ended."""
        with self._lock:
            self._begun.pop(owner, None)
            self._undo_all([fault for fault, active in self._active.items() if active.owner is owner])

    def _undo_all(self, faults: Iterable[Fault]) -> None:
        """Undo faults, the newest first; if one fails, the others are undone all the same."""
        with ExitStack() as stack:
            for fault in faults:
                stack.callback(self._undo_in_the_end, fault)

    def _undo_in_the_end(self, fault: Fault) -> None:
        segment = self._active[fault].segment
        try:
            fault.undo()
        except Exception as failure:
            if isinstance(failure, SwitchFailed) and _has_ended(segment.backend):
                return  # the next use of a guest on a segment raises it
            failure.add_note(f"by {fault}")
            raise

    def _make_again(self, fault: Fault, cut: _RepeatableCut) -> None:
        if fault in self._active:
            cut.make()

    # ------------------------------------------------------------ cables

    def _hold(self, nic: GuestNic, holder: object, *, plugged_in: bool) -> None:
        was_plugged_in = nic.segment.backend.set_link(nic.link, up=plugged_in)
        self._holds.setdefault(nic, {None: was_plugged_in})[holder] = plugged_in
        _set_carrier_if_on(nic, on=plugged_in)

    def _let_go(self, nic: GuestNic, holder: object) -> None:
        """Set a cable to what the next newest fault wants, or to how it was before all faults."""
        holds = self._holds.get(nic, {})
        holds.pop(holder, None)
        if len(holds) == 1:
            del self._holds[nic]
        if holds and nic in nic.segment.nics:  # else its guest was removed
            plugged_in = list(holds.values())[-1]
            try:
                nic.segment.backend.set_link(nic.link, up=plugged_in)
            finally:
                _set_carrier_if_on(nic, on=plugged_in)


def _has_ended(backend: SegmentBackend) -> bool:
    try:
        backend.check()
    except (SwitchFailed, GuestGone):
        return True
    return False


def _set_carrier_if_on(nic: GuestNic, *, on: bool) -> None:
    """Set a card's carrier; a guest that is off gets it when it is switched on."""
    machine = running_machine(nic.guest)
    if machine is not None:
        try:
            set_carrier(machine, nic, on=on)
        except DomainFailed:
            if machine.domain.alive():
                raise


class _RepeatableCut:
    """A cut of a segment, which can be unmade and made again.

    Args:
        make: Makes it, and returns its number.
        unmake: Undoes it by its number.
    """

    def __init__(self, make: Callable[[], int], *, unmake: Callable[[int], None]) -> None:
        self._make = make
        self._unmake = unmake
        self._number: int | None = make()

    @property
    def is_made(self) -> bool:
        return self._number is not None

    def make(self) -> None:
        if self._number is None:
            self._number = self._make()

    def unmake(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            self._unmake(number)


@dataclass(frozen=True, kw_only=True)
class _Active:
    """A fault that is not undone."""

    segment: FaultableSegment
    owner: Owner | None
    steps_back: ExitStack
    """Undoes it."""
    cut: _RepeatableCut | None
